"""Several training workers on one GPU, each as if on a machine of its own."""

from __future__ import annotations


def as_machine(number: int) -> dict[str, str]:
    """Variables of a process whose NCCL shall take it for one of another machine than those of other numbers.

    NCCL refuses two ranks of one machine on the same GPU, and knows machines by what NCCL_HOSTID says. They then speak
    through the network, here the machine's own.
    """
    return {
        "NCCL_HOSTID": f"machine-{number}",
        "NCCL_SOCKET_IFNAME": "lo",
        "NCCL_P2P_DISABLE": "1",
        "NCCL_SHM_DISABLE": "1",
        "NCCL_IB_DISABLE": "1",
        "NCCL_NVLS_ENABLE": "0",
    }
