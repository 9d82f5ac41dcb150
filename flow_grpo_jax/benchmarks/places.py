"""Where the file of a benchmark lies: under one of its usual names in a folder of data."""

import pathlib

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
# Names of files without their endings, small letters for any: in the folder of data, or anywhere
# below its folder with the benchmark's name.
FILES = {
    "bamboogle": ("bamboogle", "bamboogle prerelease - sheet1", "bamboogle_prerelease"),
    "2wiki": ("2wiki", "2wikimultihopqa"),
    "hotpotqa": ("hotpotqa", "hotpot_dev_distractor_v1", "hotpot_dev_fullwiki_v1"),
    "musique": ("musique", "musique_ans_v1.0_dev"),
    "gaia": ("gaia", "metadata"),
    "aime24": ("aime24", "aime_2024", "aime_2024_problems"),
    "amc23": ("amc23",),
    "gameof24": ("gameof24", "24"),
    "gpqa": ("gpqa", "gpqa_diamond", "gpqa_main", "gpqa_extended"),
    "medqa": ("medqa", "phrases_no_exclude_test"),
}
AUTHORS = "data"  # the authors have bamboogle/data/data.json
# Splits that a file below the folder with the benchmark's name may be called after: "test.jsonl",
# "test-00000-of-00001.parquet".
SPLITS = {
    "bamboogle": ("test",),
    "2wiki": ("dev", "validation"),
    "hotpotqa": ("dev", "validation"),
    "musique": ("dev", "validation"),
    "gaia": ("validation",),
    "aime24": ("test", "train"),
    "amc23": ("test", "train"),
    "gameof24": ("test",),
    "gpqa": ("test", "train"),
    "medqa": ("test",),
}
UNANSWERED = {"gaia": "test"}  # folders with the questions whose answers are kept back


def find(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Returns the one file of benchmark `name` in `folder`.

    Raises ValueError: there is none, or there are several; the message names them.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; it should hold the files of benchmarks.")
    found = [path for path in sorted(folder.iterdir()) if _is_called(path, FILES[name])]
    for own in sorted(folder.iterdir()):
        if own.is_dir() and own.name.lower() == name:
            found += [path for path in sorted(own.rglob("*")) if _is_below(path, own, name)]
    if len(found) > 1:
        listed = " and ".join(map(str, found))
        raise ValueError(f"{folder} holds {name} in {len(found)} files, {listed}: leave one there.")
    if not found:
        *names, last = (f"{file}.*" for file in FILES[name])
        raise ValueError(
            f"{folder} holds no file of {name}. Expected is {', '.join(names)}"
            f"{' or ' * bool(names)}{last} with the ending {', '.join(SUFFIXES)} there, or a file "
            f"of the split {' or '.join(SPLITS[name])} below {folder / name}."
        )
    return found[0]


def _is_called(path: pathlib.Path, names: tuple[str, ...]) -> bool:
    return path.suffix in SUFFIXES and path.stem.lower() in names and path.is_file()


def _is_below(path: pathlib.Path, own: pathlib.Path, name: str) -> bool:
    """Returns whether a path below the benchmark's own folder is called like its file."""
    parts = path.relative_to(own).parts
    if any(part.startswith(".") for part in parts) or UNANSWERED.get(name) in parts:
        return False
    stem = path.stem.lower()
    split = (stem,) if stem.split("-")[0] in SPLITS[name] else ()
    return _is_called(path, (*FILES[name], AUTHORS, *split))
