"""Runs docs/quickstart.ipynb, which is its own source: edit it in Jupyter, then write its outputs.

python tests/notebook.py    # or `make notebook`: a clone of the last commit, in an empty folder
"""

import pathlib
import re
import sys
import tempfile

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
SECONDS = 3_600  # of a cell
TIMES = re.compile(r" [|·] [\d.]+(\+[\d.]+)? s(?= [|·]|$)", re.MULTILINE)  # in what commands say


def executed(folder, **parameters):
    """Returns the notebook after a run in `folder`, as `cleaned` leaves it.

    parameters: name -> value, in place of those of the cell with the tag "parameters". The cell
      itself comes back as it was.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    source = cell.source
    for name, value in parameters.items():
        given = f"{name} = {value!r}"
        cell.source, count = re.subn(
            rf"^{name} = [^#\n]*", lambda _, given=given: given, cell.source, flags=re.MULTILINE
        )
        if count != 1:
            raise ValueError(f"The cell of parameters assigns {name} {count} times.")
    nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    cell.source = source
    return cleaned(notebook, {str(folder): ".", str(ROOT): ".", str(pathlib.Path.home()): "~"})


def cleaned(notebook, places):
    """Takes times, versions and the names of this machine's folders out of a notebook; returns it.

    places: folder -> what stands for it.
    """
    kernel = {"display_name": "Python 3", "name": "python3", "language": "python"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = TIMES.sub("", _with(places, output.text))
    return notebook


def _with(places, text):
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, places[place])
    return text


def main():
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(folder, REPOSITORY=ROOT.as_uri())
    nbformat.write(notebook, NOTEBOOK)
    sys.stderr.write(f"wrote {NOTEBOOK}\n")


if __name__ == "__main__":
    main()
