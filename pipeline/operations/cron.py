"""Cron expressions as crontab(5) has them, as triggers of APScheduler, which counts and joins days otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apscheduler.triggers.base import BaseTrigger

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def make_trigger(cron: str, timezone: str) -> BaseTrigger:
    """The times of a cron expression. Raises: ValueError in words on one that is not one."""
    from apscheduler.triggers.combining import OrTrigger
    from apscheduler.triggers.cron import CronTrigger

    fields = cron.split()
    if len(fields) not in (5, 6):
        raise ValueError(
            f"{cron!r} has {len(fields)} fields; write minute, hour, day, month and weekday, such as '0 3 * * *', or "
            "these with the second before them"
        )
    second, minute, hour, day, month, weekday = fields if len(fields) == 6 else ["0", *fields]
    common = {"second": second, "minute": minute, "hour": hour, "month": month, "timezone": timezone}
    weekday = _weekdays(weekday)
    try:
        if not day.startswith("*") and weekday != "*":
            return OrTrigger([CronTrigger(day=day, **common), CronTrigger(day_of_week=weekday, **common)])
        return CronTrigger(day=day, day_of_week=weekday, **common)
    except ValueError as error:
        raise ValueError(f"{cron!r} is no cron expression: {error}") from None


def _weekdays(field: str) -> str:
    """A weekday field in names: APScheduler counts days from Monday, crontab from Sunday."""
    if field == "*":
        return field
    chosen: set[int] = set()
    for item in field.lower().split(","):
        span, _, step = item.partition("/")
        first, dash, last = span.partition("-")
        try:
            start, stop = (0, 6) if span == "*" else (_weekday(first), _weekday(last) if dash else _weekday(first))
            stop = 6 if step and not dash and span != "*" else stop
            stop += 7 if stop < start else 0
            days = range(start, stop + 1, int(step or 1))
        except ValueError:
            raise ValueError(
                f"weekday {item!r}: write 0 to 7 (0 and 7 are Sunday) or sun to sat, a-b, a,b or */n"
            ) from None
        chosen |= {day % 7 for day in days}
    return ",".join(WEEKDAYS[day] for day in sorted(chosen))


def _weekday(text: str) -> int:
    if text in WEEKDAYS:
        return WEEKDAYS.index(text)
    if text.isdigit() and int(text) <= 7:
        return int(text)
    raise ValueError(text)
