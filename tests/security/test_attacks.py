"""The attacks that `cove doctor --attack` ships, on every driver; and that they notice a layer that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attacks_support import Verdicts, attacked
from cove.engine.attacks.run import attacks
from tests_support import SETUP_DIR
from world_support import World

pytestmark = pytest.mark.real
DRIVERS = ("runc", "crun", "gvisor")
WEAKENED = str(Path(__file__).with_name("weakened.py"))


@pytest.fixture(scope="module")
def verdicts(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdicts]:
    """Every driver attacked once, by itself: what one does to the machine must not be another's result."""
    found: dict[str, Verdicts] = {}
    program = ["-m", "cove.engine.attacks"]
    for driver in DRIVERS:
        folder = tmp_path_factory.mktemp(driver)
        _, found[driver], complaint = attacked(folder, program, driver, outside=world.outside.path)
        assert found[driver], complaint
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("attack", sorted(attacks()))
@pytest.mark.parametrize("driver", DRIVERS)
def test_attack_holds(driver: str, attack: str, verdicts: dict[str, Verdicts]) -> None:
    verdict = verdicts[driver][attack]
    assert verdict["outcome"] in {"held", "not-here"}, f"{verdict['tried']} {verdict['seen']}"


LAYERS = {
    "seccomp": ("a02", "attack_a02_new_namespaces"),
    "capabilities": ("a15", "attack_a15_more_capabilities"),
    "users": ("s03", "attack_s03_root_inside_is_nobody_outside"),
    "masks": ("a20", "attack_a20_what_can_be_read_of_the_machine"),
    "network": ("a17", "attack_a17_abstract_sockets_of_the_host"),
    "limits": ("c33", "attack_c33_memory_bombs"),
    "privileges": ("a15", "attack_a15_more_capabilities"),
    "closed": ("d49", "attack_d49_metadata_services"),
    "senders": ("d59", "attack_d59_spoofed_senders"),
}
"""The layer that is taken away, which attacks to try, and the one that must notice."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_that_is_gone_is_noticed(layer: str, world: World, tmp_path: Path) -> None:
    only, noticing = LAYERS[layer]
    code, found, complaint = attacked(tmp_path / "d", [WEAKENED, layer], "runc", only, outside=world.outside.path)
    assert found, complaint
    assert found[noticing]["outcome"] == "broken", found[noticing]
    assert code == 1


def test_the_command_prints_a_verdict_and_its_exit_code_is_the_verdict(tmp_path: Path) -> None:
    cove = Path(sys.executable).with_name("cove")
    env = {"PATH": os.environ["PATH"], "COVE_DATA_DIR": str(SETUP_DIR), "HOME": str(tmp_path)}
    done = subprocess.run(
        [cove, "doctor", "--attack", "--driver", "runc", "--only", "a0"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "held     runc    A1 " in done.stdout
    assert "Every attack held" in done.stdout
