"""Clusters: which rows are the same, exactly or through a chain of near ones. NumPy and SciPy, on the driver."""

from __future__ import annotations

import numpy as np


def cluster(count: int, pairs: np.ndarray) -> np.ndarray:
    """The label of each of `count` rows, int64 `[N]`: the smallest row that pairs int64 `[P, 2]` connect it with."""
    from scipy.sparse import coo_array  # a third of a second that Ray's workers, who never come here, need not wait
    from scipy.sparse.csgraph import connected_components

    # Few rows are in pairs: only those become nodes of the graph.
    nodes, places = np.unique(pairs, return_inverse=True)
    first, second = places.reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs), np.int8), (first, second)), shape=(len(nodes), len(nodes)))
    label = np.arange(count)
    label[nodes] = nodes[exact_groups(connected_components(graph, directed=False)[1])]
    return label


def exact_groups(ids: np.ndarray) -> np.ndarray:
    """The first row with the same id (any integers `[N]`) as each row, int64 `[N]`."""
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], np.int64)
