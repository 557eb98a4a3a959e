"""Write a trunk in another library's format, with its model card."""

import os
import pathlib
from collections.abc import Mapping

from maskco_fast.evaluation.weights import Weights
from maskco_fast.export.detectron2_configs import detectron2_configs
from maskco_fast.export.formats import FORMATS
from maskco_fast.export.key_maps import rename
from maskco_fast.export.model_card import model_card
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.system.files import staged, write_atomically
from maskco_fast.networks.resnet import TRUNKS


def export_weights(
    weights: Weights,
    out: str | os.PathLike[str],
    *,
    to: str,
    evaluation: Mapping[str, Mapping[str, float]] | None = None,
) -> list[pathlib.Path]:
    """Write `weights` to `out`, beside it the model card `OUT.md`; return the files written.

    `to`: a name in `FORMATS`. For detectron2 with ResNet-50 the two configuration files are
    written too, under names that begin with that of `out`. `evaluation`: results for the card, as
    `find_results` returns them. Each file is written atomically, the weights last: where they
    exist, everything does.

    Raises InvalidInput for an unknown format or a file ending that its library does not recognise,
    and MissingPackage where the format needs an absent package.
    """
    if to not in FORMATS:
        raise InvalidInput(f"`to` must be one of {', '.join(FORMATS)}, got {to!r}.")
    if TRUNKS[weights.trunk].small_width is not None and to != "safetensors":
        raise InvalidInput(
            f"`to` must be safetensors for {weights.trunk}, got {to!r}: no other library has it."
        )
    form = FORMATS[to]
    path = pathlib.Path(out)
    if path.suffix not in form.endings:
        endings = " or ".join(form.endings)
        raise InvalidInput(
            f"`out` must end in {endings} for {to}, got {path.name!r}. "
            f"Name it {path.stem or 'trunk'}{form.endings[0]}."
        )
    texts = {}
    # Detectron2's C4 heads consist of bottleneck blocks, so it has no such detector on ResNet-18.
    if to == "detectron2" and weights.trunk == "resnet50":
        texts = {
            path.with_name(f"{path.stem}_{suffix}.yaml"): text
            for suffix, text in detectron2_configs(path.name).items()
        }
    card = model_card(
        weights.description,
        to=to,
        file=path.name,
        companions=tuple(companion.name for companion in texts),
        evaluation=evaluation,
    )
    texts[path.with_name(f"{path.name}.md")] = card
    with staged(path) as temporary:
        form.write(temporary, rename(weights.trunk_state, form.key_map), weights.description)
        for companion, text in texts.items():
            with write_atomically(companion, "w") as file:
                file.write(text)
    return [path, *texts]
