"""Which engine trains, by what is installed: directories with the metadata and the folders of real distributions."""

import importlib
import sys
import sysconfig

import pytest

from nemo_probsft.run import engines
from tests.support.engine_packages import install, install_bridge, install_nemo

NEMO = "use the container nvcr.io/nvidia/nemo:25.11, or Python 3.11 with requirements/train.lock"
BRIDGE = "use the container nvcr.io/nvidia/nemo:26.06 or 26.08, or Python 3.12 with requirements/bridge.lock"


@pytest.fixture(autouse=True)
def site(tmp_path, monkeypatch):
    """A site directory that holds nothing yet, instead of the one that the tests run from."""
    paths = sysconfig.get_paths()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), paths["stdlib"], paths["platstdlib"]])
    # Where another test has imported the package importlib_metadata, its finder does what Python's own did.
    known = ("_frozen_importlib", "importlib_metadata")
    finders = [finder for finder in sys.meta_path if getattr(finder, "__module__", "").startswith(known)]
    monkeypatch.setattr(sys, "meta_path", finders)
    for name in ("nemo", "megatron"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "site").mkdir()
    yield tmp_path / "site"
    importlib.invalidate_caches()


def refusal(engine):
    with pytest.raises(ValueError, match=r".") as caught:
        engines.choose(engine)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_one_that_is_installed_is_taken(site):
    install_nemo(site)
    reason = "the only one that can train here: megatron-bridge is not installed"
    assert engines.choose("auto") == ("nemo", "2.7.3", reason)
    assert engines.choose("nemo") == ("nemo", "2.7.3", "the recipe asks for it")
    assert engines.choose("nemo").text == "NeMo 2.7.3"
    assert refusal("bridge") == f"bridge: megatron-bridge is not installed; {BRIDGE}"


def test_where_both_are_installed_nemo_is_taken(site):
    install_nemo(site, "2.6.0")
    install_bridge(site)
    assert engines.choose("auto") == ("nemo", "2.6.0", "both engines are installed; engine: bridge asks for the other")
    assert engines.choose("bridge") == ("bridge", "0.6.2", "the recipe asks for it")
    assert engines.choose("bridge").text == "Megatron-Bridge 0.6.2"


def test_a_second_part_of_the_namespace_package_is_found(site, tmp_path):
    """Megatron-Core is installed beside Megatron-Bridge, and in the containers from another directory."""
    core = tmp_path / "core"
    core.mkdir()
    sys.path.insert(0, str(core))  # of the fixture
    install(core, "megatron-core", "0.19.2", "megatron.core")
    install_bridge(site)
    assert engines.choose("auto").name == "bridge"


def test_nothing_installed_is_one_line_with_both_remedies(site):
    assert refusal("auto") == (
        f"auto finds none: nemo-toolkit is not installed; megatron-bridge is not installed; {BRIDGE}; or {NEMO}"
    )
    assert refusal("nemo") == f"nemo: nemo-toolkit is not installed; {NEMO}"


def test_nemo_toolkit_3_has_no_language_models_any_more(site):
    install(site, "nemo-toolkit", "3.0.0", "nemo", "nemo.collections", "nemo.collections.asr")
    problem = "nemo-toolkit 3.0.0 is installed, but has no nemo.collections.llm"
    assert refusal("nemo") == f"nemo: {problem}; {NEMO}"
    install_bridge(site)
    assert engines.choose("auto") == ("bridge", "0.6.2", f"the only one that can train here: {problem}")


@pytest.mark.parametrize(
    ("install_it", "version", "name", "oldest"),
    [(install_bridge, "0.4.1", "bridge", "0.5"), (install_nemo, "2.5.0", "nemo", "2.6")],
)
def test_an_older_one_is_refused(site, install_it, version, name, oldest):
    install_it(site, version)
    package = engines.KINDS[name].package
    assert f"{name}: {package} {version} is older than {oldest}, the oldest that can be used; use the" in refusal(name)
    assert f"{package} {version} is older than {oldest}" in refusal("auto")


@pytest.mark.parametrize(
    ("version", "untested"),
    [("0.5.0", ""), ("0.5.0rc1", ""), ("0.6.0+g1a2b", ""), ("0.7.0", "0.7.0"), ("0.10.1", "0.10.1"), ("1.0", "1.0")],
)
def test_a_newer_one_is_taken_and_said_to_be_untested(site, version, untested):
    install_bridge(site, version)
    reason = "the recipe asks for it"
    warning = f"; untested with Megatron-Bridge {untested}, tested with 0.6" if untested else ""
    assert engines.choose("bridge") == ("bridge", version, reason + warning)


def test_the_trainer_of_an_engine_that_is_gone_is_one_line(site):
    with pytest.raises(ValueError, match=r"^bridge: megatron-bridge is not installed; use the container "):
        engines.trainer_of("bridge")
