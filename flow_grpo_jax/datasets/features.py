"""Which features a TFDS folder may have: TFDS imports whatever class its features.json names."""

import json
import pathlib
from collections.abc import Mapping

NAME = "features.json"
_HOME = "tensorflow_datasets.core.features."
FEATURES = {  # class, as TFDS names it: where its content stands
    f"{_HOME}features_dict.FeaturesDict": "featuresDict",
    f"{_HOME}sequence_feature.Sequence": "sequence",
    f"{_HOME}text_feature.Text": "text",
    f"{_HOME}tensor_feature.Tensor": "tensor",
    f"{_HOME}scalar.Scalar": "tensor",
    f"{_HOME}class_label_feature.ClassLabel": "classLabel",
}
_BESIDE = {"pythonClassName", "description", "valueRange"}


def check(folder: pathlib.Path) -> None:
    """Raises ValueError unless features.json of a TFDS folder names classes of FEATURES alone."""
    path = folder / NAME
    try:
        _check(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {NAME}; it says what the rows are.") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        classes = ", ".join(name.rpartition(".")[2] for name in FEATURES)
        raise ValueError(
            f"{path} has features that are not read: {str(problem) or type(problem).__name__}. "
            f"Read are {classes} of TFDS. Export the data as .jsonl or .parquet."
        ) from None


def _check(feature: Mapping) -> None:
    name = feature.get("pythonClassName")
    if name not in FEATURES:
        raise ValueError(f"one is of the class {ascii(name):.200}")
    if unknown := set(feature) - _BESIDE - {FEATURES[name]}:
        raise ValueError(f"one has the field {ascii(min(unknown)):.200}")
    content = feature[FEATURES[name]]
    if FEATURES[name] == "featuresDict":
        for part in content["features"].values():
            _check(part)
    elif FEATURES[name] == "sequence":
        _check(content["feature"])
