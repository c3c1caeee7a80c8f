"""What a sweep reports: its own cells, whatever lies beside them."""

from __future__ import annotations

from nemo_probsft import config, sweep
from nemo_probsft.demo import RECIPES
from nemo_probsft.run import eval_env
from nemo_probsft.sweep import Cell, Sweep
from tests.unit.test_report import write_diagnosis, write_result, write_run


def test_a_sweep_reports_its_own_cells_and_its_diagnosis(tmp_path, capfd):
    """An earlier sweep of other objectives has left its results beside them."""
    output, base = tmp_path / "sweep", tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    options = [f"run_dir={output}", f"model.path={base}"]
    recipe = config.load(RECIPES / "strong-p.yaml", options)
    cells = {key: Cell(key, 0, output / f"{key}-seed0") for key in ("original", "p", "GeneralFamily-10")}
    for key, cell in cells.items():
        write_run(cell.run_dir, key)
        place = eval_env.results_dir(cell.export, output / "results") / "demo_strong" / "sample"
        write_result(place, cell.export, "demo_strong", "sample", 0.5, seed=cell.seed)
    (output / "diagnose").mkdir()
    write_diagnosis(output / "diagnose" / "diagnose.json", mean_p=0.72, data="strong_train.jsonl")
    trained = [cells["original"], cells["p"]]
    sweep._report(Sweep("recipe.yaml", (), recipe, tuple(trained), ()), trained)
    printed = capfd.readouterr().out
    page = (output / "report" / "report.md").read_text()
    for text in (printed, page):
        assert "original" in text
        assert "GeneralFamily-10" not in text
    assert "mean p 0.720" in page
    assert f"report: {output / 'report' / 'report.html'}" in printed.replace("\n", "")
