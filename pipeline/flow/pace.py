"""How often the driver looks at what its flow is doing: no more than the rows need."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, ClassVar

from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.flow.session import ON_TIME_S, set_timer_slack

ROWS = 8
"""Over how many of the last rows the time between two is taken, at most."""
SHARE = 0.1
"""Of the time between two rows that passes between two looks: a worker's next row waits at it long before its turn."""
MOST_S = 0.5


class Pace(ExecutionCallback):  # type: ignore[misc]
    """Called by Ray Data after each of its looks at every actor and task, of which it takes ten a second.

    Where a row takes seconds nearly all of them find nothing, and each takes milliseconds of the driver's machine, more
    with every worker. Ray makes the object, from the class, in the driver: what is known of the rows is the class's.
    """

    pause_s: ClassVar[float] = 0.0
    """Between two looks, beside the time that Ray Data itself waits for a task to end."""
    _ends: ClassVar[deque[float]] = deque(maxlen=ROWS + 1)

    @classmethod
    def begin(cls) -> None:
        """Forget the rows of an earlier flow."""
        cls._ends.clear()
        cls.pause_s = 0.0

    @classmethod
    def row_came_out(cls, now: float) -> None:
        """Note the end of a row. now: seconds of a clock that does not jump."""
        cls._ends.append(now)
        between = (cls._ends[-1] - cls._ends[0]) / max(1, len(cls._ends) - 1)
        cls.pause_s = min(SHARE * between, MOST_S)

    def on_execution_step(self, executor: Any) -> None:
        """Wait for the next look."""
        set_timer_slack(ON_TIME_S)  # of the thread that looks: Ray Data lets a timer of its own run out at each look
        time.sleep(self.pause_s)
