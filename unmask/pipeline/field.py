"""The field as three surveys divide it, and where each technique is in this package: the first part of docs/methods.md.

Public idea: ``TECHNIQUES``; ``rows(PART)`` of one part. The surveys: A, discrete diffusion in large language and multimodal models
(arXiv 2506.13759); B, diffusion language models (arXiv 2508.10875); C, multimodal generative AI (arXiv 2409.14993).
"""

from __future__ import annotations

from dataclasses import dataclass

SURVEYS = {"A": "arXiv 2506.13759", "B": "arXiv 2508.10875", "C": "arXiv 2409.14993"}
PARTS = ("modelling", "training", "inference", "applications")
HERE, NOT_HERE = "here", "not here"


@dataclass(frozen=True, kw_only=True)
class Technique:
    """``named``: the surveys that name it, letters of ``SURVEYS`` · ``methods``: files of unmask/methods by name · ``files``: others of the
    package · ``use``: an option or a command · ``page``: of docs, with our figures, where no card has them · ``why``: why it is not here.
    """

    part: str
    name: str
    named: str
    methods: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    use: str = ""
    page: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"{self.part!r} is not a part of the field; choose from {', '.join(PARTS)}")
        if bool(self.why) == bool(self.methods or self.files):
            raise ValueError(f"{self.name}: give the files that have it, or why it is not here")

    @property
    def status(self) -> str:
        return NOT_HERE if self.why else HERE


def rows(part: str) -> list[Technique]:
    """The techniques of a part, in order."""
    return [one for one in TECHNIQUES if one.part == part]


def _of(part: str, *entries: tuple[str, str, str, str, str, str]) -> tuple[Technique, ...]:
    """(name, surveys, methods, files, use, page); a method list "-" makes the files the reason why it is not here."""
    found = []
    for name, named, methods, files, use, page in entries:
        if methods == "-":
            found.append(Technique(part=part, name=name, named=named, why=files))
            continue
        own, others = tuple(methods.split()), tuple(files.split())
        found.append(Technique(part=part, name=name, named=named, methods=own, files=others, use=use, page=page))
    return tuple(found)


TECHNIQUES: tuple[Technique, ...] = (
    *_of(
        "modelling",
        ("absorbing (masked) diffusion", "AB", "", "corruption/absorbing.py objectives/masked.py", "", "stages.md"),
        ("masking mixed with replacement", "A", "m2dm", "", "", ""),
        ("revision of tokens in the process itself", "A", "rediff", "", "", ""),
        ("noise levels of single tokens", "AB", "neodiff", "corruption/chunked.py", "", ""),
        ("diffusion of word embeddings", "B", "dinoiser", "corruption/gaussian.py", "", ""),
        ("diffusion of latent text", "B", "ladic", "", "", ""),
        ("discrete and continuous states together", "B", "ccdd", "", "", ""),
        ("block diffusion", "AB", "ctrldiff", "sampling/blocks.py sampling/block_diffusion.py", "", ""),
        ("energy-based correction", "A", "edlm", "", "", ""),
        ("autoregression with a diffusion head", "C", "mmar unigenx", "models/diffusion_head.py", "", ""),
        ("looped depth as diffusion", "B", "recurrent_depth", "models/looped.py", "", ""),
        ("one network for text and pictures, all diffusion", "ABC", "mmada", "models/elastic.py", "", "models.md"),
        ("partly shared weights", "C", "", "models/elastic.py models/blocks.py", "", "models.md"),
        ("mixture of experts", "C", "promoe", "models/experts.py", "", ""),
        ("language model and frozen decoder, joined by a connector", "C", "gill query_kontext", "", "", ""),
        ("semantic features in, codes out", "C", "lavida", "models/vision.py tokens/vq.py", "", "models.md"),
        ("drawing and matching in one network", "C", "diffdis", "", "", ""),
        ("uniform transitions from the mask-free prior", "A", "-", "no released model of our families uses it", "", ""),
        ("concrete score, discrete flow matching, GIDD", "AB", "-", "same networks, other losses; not written", "", ""),
        (
            "insertion of tokens, flexible length",
            "AB",
            "-",
            "the sampler keeps lengths; slots cover short gaps",
            "",
            "",
        ),
        ("sub-token masks", "A", "-", "not written", "", ""),
    ),
    *_of(
        "training",
        ("start from an autoregressive model", "AB", "dimple dida", "", "unmask train dimple.adapt", ""),
        ("start from an image-token model", "B", "medim", "", "", ""),
        ("complementary masks", "A", "lavida", "", "unmask train finetune -o masks=complementary", ""),
        ("mask schedules by task", "A", "", "corruption/schedules.py", "", "stages.md"),
        ("information-aware schedules", "A", "m2dm", "", "", ""),
        ("weights of tokens", "A", "", "objectives/importance.py objectives/masked.py", "", "stages.md"),
        (
            "low-variance likelihood",
            "AB",
            "",
            "objectives/likelihood.py posttraining/likelihoods.py",
            "",
            "decoding/unigrpo.md",
        ),
        ("policy gradients (UniGRPO)", "AB", "mmada", "posttraining/rollout.py", "unmask train unigrpo", ""),
        ("preferences", "AB", "inpo", "", "unmask train inpo.pairs", ""),
        ("distillation to few steps", "AB", "", "objectives/through_time.py recipes/distilled.py", "", "stages.md"),
        ("training on own errors", "A", "rediff", "", "unmask train rediff", ""),
        ("self-conditioning", "AB", "ladic dinoiser", "", "", ""),
        ("noise that cannot be ignored", "B", "dinoiser", "", "", ""),
        ("instruction tuning on own data", "AB", "", "recipes/finetune.py", "unmask train finetune", "finetune.md"),
        ("adapters of low rank", "C", "", "models/lora.py", "unmask train finetune --lora", "finetune.md"),
        ("adapters of conditions", "C", "sur_adapter diffusion_link diffa", "models/bridges.py", "", ""),
        ("a generator that teaches its encoder", "C", "deem", "", "", ""),
        ("chain of thought over denoising steps", "B", "-", "thoughts are text here (docs/thinking.md)", "", ""),
    ),
    *_of(
        "inference",
        (
            "orders by confidence, margin, entropy",
            "A",
            "",
            "sampling/selection.py",
            "--sampler topk_margin",
            "samplers.md",
        ),
        ("thresholds", "AB", "dimple", "sampling/selection.py", "--sampler fast_dllm", "samplers.md"),
        ("entropy bounds", "A", "eb_sampler", "", "--sampler eb_sampler", ""),
        ("orders of a grid", "A", "", "sampling/orders.py", "unmask bench samplers --orders halton", "samplers.md"),
        ("semi-autoregressive blocks", "AB", "", "sampling/blocks.py", "", "samplers.md"),
        ("remasking", "AB", "remdm", "", "--sampler remdm", ""),
        ("revision by a trained model", "AB", "rediff", "", "--sampler rediff", ""),
        ("candidates weighed by an energy", "A", "edlm", "", "--sampler edlm", ""),
        ("classifier-free guidance", "AB", "", "sampling/guidance.py", "--guidance", "samplers.md"),
        ("guidance by a classifier", "A", "ctrldiff", "", "--sampler ctrldiff", ""),
        ("guidance by an autoregressive model", "B", "flashdlm", "", "--guide-model", ""),
        ("prefix caches", "AB", "lavida", "sampling/cache.py", "--cache prefix", ""),
        ("refreshed caches", "AB", "flashdlm", "sampling/ml_cache.py", "--cache block, --cache free", "fast.md"),
        ("left-out masks and registers", "A", "", "sampling/step_causal.py", "unmask train sparse.mini", "sparse.md"),
        ("early stop", "A", "", "sampling/stopping.py", "--speed fast", "fast.md"),
        ("drafts, slots and given words", "A", "lavida dimple", "tasks/drafts.py", "--draft", ""),
        ("block length by a policy", "AB", "ctrldiff", "", "--sampler ctrldiff", ""),
        ("longer contexts", "A", "longllada", "", "--context N", ""),
        ("quantisation", "A", "qdlm", "checkpoints/quantise.py", "unmask quantise", ""),
        ("pipelines over unfinished positions", "A", "recurrent_depth", "", "--sampler wavefront", ""),
        ("few steps of continuous values", "C", "mmar", "sampling/solver.py", "", ""),
        (
            "constraints and grammars",
            "B",
            "",
            "sampling/constrain.py grammars/automaton.py",
            "unmask ask --schema",
            "structured.md",
        ),
        ("search for failures", "C", "sage", "analysis/search.py", "unmask probe", ""),
        ("explanation by information", "C", "diffusionpid", "analysis/explain.py", "unmask explain", ""),
        ("speculative decoding", "B", "-", "not written; a guide model is the nearest", "", ""),
        ("voting over steps, particle Gibbs", "A", "-", "not written; best-of-N is (docs/thinking.md)", "", ""),
        ("attacks by infilling, and defences", "A", "-", "no model of ours answers open questions", "", ""),
    ),
    *_of(
        "applications",
        ("reading pictures", "ABC", "lavida dimple", "tasks/understand.py", "unmask ask", "models.md"),
        ("drawing", "ABC", "dida mmada", "tasks/generate.py", "unmask generate", "models.md"),
        ("editing", "C", "query_kontext", "tasks/edit.py", "unmask edit", "models.md"),
        ("boxes and plans", "A", "", "tasks/ground.py tasks/planning.py", "unmask ground", "thinking.md"),
        ("reports with medical pictures", "A", "medim", "", "unmask train medim.joint", ""),
        ("driving", "AC", "reflectdrive", "", "unmask train reflectdrive.planner", ""),
        ("proteins", "A", "dplm2", "", "", ""),
        ("crystals and numbers", "A", "unigenx", "", "", ""),
        ("speech", "AB", "diffa", "", "unmask ask --audio", ""),
        ("motion", "C", "m2dm", "", "unmask train m2dm.motions", ""),
        ("streams of speech and pictures", "C", "x_streamer", "", "", ""),
        ("retrieval", "C", "gill diffdis", "", "unmask train gill.bridge", ""),
        ("terse prompts", "C", "sur_adapter", "", "unmask train sur_adapter.terse", ""),
        ("video, graphs, robots", "BC", "-", "no data or model of ours has them", "", ""),
    ),
)
