"""Of a driver on this machine it is known whether it lives, of one elsewhere nothing."""

import dataclasses
import json
import subprocess
import sys

from pipelines.drivers import Driver
from tests.pipelines.processes import needs_proc

pytestmark = needs_proc


def test_this_process_lives() -> None:
    driver = Driver.this_process()
    assert driver.is_alive_here() and not driver.is_dead_here()


def test_a_process_that_has_ended_is_dead_and_so_is_one_before_the_last_boot_or_with_a_pid_used_again() -> None:
    program = (
        "import dataclasses, json; from pipelines.drivers import Driver\n"
        "print(json.dumps(dataclasses.asdict(Driver.this_process())))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ended = Driver(**json.loads(done.stdout))
    own = Driver.this_process()
    for driver in (
        ended,
        dataclasses.replace(own, boot_id="another"),
        dataclasses.replace(own, started_ticks=str(int(own.started_ticks) - 1)),
    ):
        assert driver.is_dead_here() and not driver.is_alive_here()


def test_of_a_process_elsewhere_or_without_proc_nothing_is_known() -> None:
    own = Driver.this_process()
    for driver in (dataclasses.replace(own, host="elsewhere"), dataclasses.replace(own, started_ticks="")):
        assert not driver.is_alive_here() and not driver.is_dead_here()
