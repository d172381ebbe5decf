"""Pictures of LLaDA2.0-Uni for parity: sizes and crops, codes of pixels, and pixels of codes by both flow decoders.

Public idea: ``picture_arrays(folder, arrays, vq) -> Arrays``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unmask.checkpoints.llada2_uni import DECODER, TURBO, load_flow
from unmask.tasks.llada2_uni import edit_size, edit_sizes, edited, read_size, understood
from unmask.tokens.uni import FlowSchedule, TurboSchedule, UniTokenizer, upsampled
from unmask.tokens.z_image import ZImage

Arrays = dict[str, Tensor]
_SEVERAL, _ONE = 448**2, 800**2  # pixels of a picture that is read: of several, of one
_PATCHES = 256  # of 32 pixels, of a picture that is edited
_SIDE, _FACTOR = 1024, 32  # pixels of the square drawing that these are of, and of a code
_EVERY = slice(4, None, 8)  # pixels of the edited picture that the file has


def picture_arrays(folder: Path, arrays: Arrays, vq: UniTokenizer) -> Arrays:
    """Our version of every array about pictures."""
    return {**_prepared(arrays), **_tokenized(arrays, vq), **_decoded(folder, arrays, vq)}


def _prepared(arrays: Arrays) -> Arrays:
    sizes = [(int(h), int(w)) for h, w in arrays["pre.sizes"].tolist()]
    image = Image.fromarray(arrays["pre.image"].cpu().numpy())
    cut = edited(image, _SIDE, factor=_FACTOR, cut=True)
    return {
        "pre.single": torch.tensor([read_size(size, _ONE) for size in sizes]),
        "pre.multi": torch.tensor([read_size(size, _SEVERAL) for size in sizes]),
        "pre.edit_wh": torch.tensor([edit_size((w, h), _PATCHES) for h, w in sizes]),
        "pre.crop_list": torch.tensor(edit_sizes(_PATCHES)),
        "pre.image_understood": _array(understood(image, _SIDE, most=_SEVERAL)),
        "pre.image_edited_size": torch.tensor([cut.height, cut.width]),
        "pre.image_edited_every8": _array(cut)[_EVERY, _EVERY],
    }


def _array(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy())


def _tokenized(arrays: Arrays, vq: UniTokenizer) -> Arrays:
    out, patch = Arrays(), vq.config.encoder.patch
    for name in ("vq", "vq2"):
        image = arrays[f"{name}.image"].permute(2, 0, 1)[None].float() / 255
        pixels = (image - 0.5) / 0.5
        features = vq.encoder(pixels)
        latents = vq.quant_conv(features)
        codes = vq.codes_of(latents)
        patches = torch.nn.functional.unfold(pixels, patch, stride=patch)[0].T
        out |= {f"{name}.patches": patches, f"{name}.features": features[0].flatten(1).T, f"{name}.latents": latents}
        out |= {f"{name}.codes": codes.flatten(), f"{name}.grid": torch.tensor([1, *codes.shape[1:]])}
    return out


def _decoded(folder: Path, arrays: Arrays, vq: UniTokenizer) -> Arrays:
    """The decoders one after the other, from given noise. Latents have an axis of one frame in the file."""
    device = arrays["dec.noise"].device
    high, wide = arrays["dec.grid"].tolist()
    codes = arrays["dec.codes"].view(1, high, wide)
    features, noise = vq.decoder.prior(codes), arrays["dec.noise"][:, :, 0]
    out = {"dec.upsampled": upsampled(codes).flatten(), "dec.features": features[0]}
    full, turbo = (load_flow(folder / name).to(device) for name in (DECODER, TURBO))
    schedule = FlowSchedule(points=int(arrays["dec.steps"]))
    steps = [noise, *schedule.latents(full, noise, features)]
    out |= {"dec.trajectory": torch.stack(steps)[:, :, :, None], "dec.times": schedule.times()[:-1].double()}
    out |= {"dec.times50": FlowSchedule().times(), **_pixels("dec", steps[-1], vq)}
    now = arrays["dec.one_t"]
    time = full.t_embedder(now)[:, None]
    latent, refined = full.refined(noise, time, features)
    last = list[Tensor]()
    hook = full.layers[-1].register_forward_hook(lambda _, given, made: last.append(made))
    out |= _one("dec", full, noise, now, features)
    hook.remove()
    out |= {"dec.one_time_embedding": time[:, 0], "dec.one_refined_latent": latent, "dec.one_refined_features": refined}
    out |= {
        "dec.one_last_layer": last[0],
        "dec.one_velocity": schedule.velocity(full, noise, now[0], features)[:, :, None],
    }
    fast = TurboSchedule(steps=int(arrays["turbo.steps"]))
    *_, done = fast.latents(turbo, noise, features, list(arrays["turbo.noises"][:, :, :, 0]))
    out |= {
        "turbo.times": fast.times()[:-1],
        "turbo.times8": TurboSchedule().times(),
        **_pixels("turbo", done.float(), vq),
    }
    out |= _one("turbo", turbo, noise, arrays["turbo.one_t"], features)
    return out | {"turbo.one_velocity": turbo(noise, arrays["turbo.one_t"], features)[:, :, None]}


def _one(name: str, flow: ZImage, noise: Tensor, now: Tensor, features: Tensor) -> Arrays:
    """One call with and without the codes."""
    cond, null = (flow(noise, now, given)[0, :, None] for given in (features, torch.zeros_like(features)))
    return {f"{name}.one_cond": cond, f"{name}.one_null": null}


def _pixels(name: str, latent: Tensor, vq: UniTokenizer) -> Arrays:
    pixels = (vq.decoder.vae(latent) + 1) / 2
    return {
        f"{name}.latent": latent[:, :, None],
        f"{name}.pixels_unclamped": pixels,
        f"{name}.pixels": pixels.clamp(0, 1),
    }
