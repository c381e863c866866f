"""Small files in the formats of all benchmarks: python -m examples.small_benchmarks OUT

An evaluation can be tried on them end to end; their scores say nothing about a model. OUT has the layout of
docs/evaluation.md, every file the name and the fields of the published one, and the pictures are drawn shapes. MMMU's
parquet files need pyarrow.
"""

import base64
import io
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from victor_jax.errors import exit_status
from victor_jax.files import new_folder

WORD = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
MME_CATEGORIES = {
    **dict.fromkeys(("posters", "celebrity", "scene", "landmark", "artwork"), "images"),
    **dict.fromkeys(("existence", "count", "position", "color", "OCR", "commonsense_reasoning"), ""),
    **dict.fromkeys(("numerical_calculation", "text_translation", "code_reasoning"), ""),
}  # where its pictures lie


class Scene(NamedTuple):
    colour: str
    shape: str

    @property
    def sentence(self) -> str:
        return f"A {self.colour} {self.shape} on a grey ground."

    def draw(self, word: str = "") -> Image.Image:
        picture = Image.new("RGB", (96, 72), "grey")
        pen, box = ImageDraw.Draw(picture), (28, 12, 68, 52)
        if self.shape == "circle":
            pen.ellipse(box, fill=self.colour)
        elif self.shape == "square":
            pen.rectangle(box, fill=self.colour)
        else:
            pen.polygon([(28, 52), (68, 52), (48, 12)], fill=self.colour)
        pen.text((4, 56), word, fill="white")
        return picture


SCENES = [Scene(*pair) for pair in itertools.product(COLOURS, SHAPES)][::3]  # four, no two of one colour


def write_all(out: Path) -> None:
    for write in (
        vqav2,
        gqa,
        vizwiz,
        textvqa,
        scienceqa,
        pope,
        mme,
        mmbench,
        seed_bench,
        llava_wild,
        mm_vet,
        mmmu,
    ):
        write(out)


def vqav2(out: Path) -> None:
    folder, tests, questions, annotations = out / "vqav2", [], [], []
    for number, scene in enumerate(SCENES, 1):
        _save(scene, folder / "test2015" / f"COCO_test2015_{number:012}.jpg")
        _save(scene, folder / "val2014" / f"COCO_val2014_{number:012}.jpg")
        text = f"What color is the {scene.shape}?"
        known = {"image_id": number, "question_id": 1000 * number}
        tests.append(_line(1000 * number, f"COCO_test2015_{number:012}.jpg", text + WORD))
        questions.append({**known, "question": text})
        annotations.append(
            {
                **known,
                "question_type": "what color is the",
                "multiple_choice_answer": scene.colour,
                "answers": _annotated(scene.colour),
                "answer_type": "other",
            }
        )
    others = [_line(7, "COCO_test2015_000000000001.jpg", f"Is this a toy?{WORD}")]
    _lines(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", tests)
    _lines(folder / "llava_vqav2_mscoco_test2015.jsonl", [*others, *tests])
    _json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    _json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})


def gqa(out: Path) -> None:
    folder, lines, truth = out / "gqa", [], {}
    for number, scene in enumerate(SCENES, 1):
        name, text = f"2024{number}", f"What shape is {scene.colour}?"
        _save(scene, folder / "data/images" / f"n{number}.jpg")
        lines.append(_line(name, f"n{number}.jpg", text + WORD))
        truth[name] = {
            "question": text,
            "imageId": f"n{number}",
            "answer": scene.shape,
            "types": {"structural": "query", "semantic": "attr", "detailed": "shape"},
        }
    _lines(folder / "llava_gqa_testdev_balanced.jsonl", lines)
    _json(folder / "data/testdev_balanced_questions.json", truth)


def vizwiz(out: Path) -> None:
    folder, tests, rows = out / "vizwiz", [], []
    for number, scene in enumerate(SCENES):
        for split in ("test", "val"):
            _save(scene, folder / split / f"VizWiz_{split}_{number:08}.jpg")
        tests.append(_line(number, f"VizWiz_test_{number:08}.jpg", f"What is this?{UNANSWERABLE}{WORD}"))
        rows.append(
            {
                "image": f"VizWiz_val_{number:08}.jpg",
                "question": "What is this?",
                "answers": _annotated(scene.shape),
                "answer_type": "other",
                "answerable": 1,
            }
        )
    _lines(folder / "llava_test.jsonl", tests)
    _json(folder / "val.json", rows)


def textvqa(out: Path) -> None:
    folder, lines, rows = out / "textvqa", [], []
    for number, (scene, word) in enumerate(zip(SCENES, ("STOP", "EXIT", "OPEN", ""), strict=True)):
        name, text = f"{number:016x}", "What does the sign say?"
        _save(scene, folder / "train_images" / f"{name}.jpg", word)
        lines.append(_line(name, f"{name}.jpg", f"{text}\nReference OCR token: {word}{WORD}"))
        answers = [word.lower() or "nothing"] * 10
        rows.append({"question": text, "image_id": name, "question_id": 34602 + number, "answers": answers})
    _lines(folder / "llava_textvqa_val_v051_ocr.jsonl", lines)
    _json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": rows})


def scienceqa(out: Path) -> None:
    folder, asked, problems = out / "scienceqa", [], {}
    for number, scene in enumerate([*SCENES, None], 4):
        name, choices = str(number), list(COLOURS if scene else ("water", "iron"))
        answer = choices.index(scene.colour) if scene else 1
        question = "Which color do you see?" if scene else "Which of these is a metal?"
        shown = "\n".join([question, *(f"{letter}. {text}" for letter, text in zip("ABCD", choices, strict=False))])
        value = f"<image>\n{shown}" if scene else shown
        turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "ABCD"[answer]}]
        asked.append({"id": name, **({"image": f"{name}/image.png"} if scene else {}), "conversations": turns})
        problems[name] = {
            "question": question,
            "choices": choices,
            "answer": answer,
            "hint": "",
            "image": "image.png" if scene else None,
            "split": "test",
        }
        if scene:
            _save(scene, folder / "images/test" / name / "image.png")
    _json(folder / "llava_test_CQM-A.json", asked)
    _json(folder / "problems.json", problems)
    _json(folder / "pid_splits.json", {"train": [], "val": [], "test": list(problems)})


def pope(out: Path) -> None:
    folder, lines = out / "pope", list[Any]()
    for split in ("adversarial", "popular", "random"):
        labels = list[Any]()
        for number, scene in enumerate(SCENES, 1):
            image = f"COCO_val2014_{number:012}.jpg"
            _save(scene, folder / "val2014" / image)
            for shape in (scene.shape, _other(SHAPES, scene.shape)):
                text = f"Is there a {shape} in the image?"
                lines.append(_line(len(lines) + 1, image, text + WORD, split))
                label = "yes" if shape == scene.shape else "no"
                labels.append({"question_id": len(labels) + 1, "image": image, "text": text, "label": label})
        _lines(folder / "coco" / f"coco_pope_{split}.json", labels)
    _lines(folder / "llava_pope_test.jsonl", lines)


def mme(out: Path) -> None:
    folder, lines = out / "MME", []
    for (category, images), scene in zip(MME_CATEGORIES.items(), itertools.cycle(SCENES), strict=False):
        image, published = f"{category}/{images}/0001.png".replace("//", "/"), []
        _save(scene, folder / "MME_Benchmark_release_version" / image)
        for colour, answer in ((scene.colour, "Yes"), (_other(COLOURS, scene.colour), "No")):
            text = f"Is the {scene.shape} {colour}?"
            published.append(f"{text} Please answer yes or no.\t{answer}\n")
            lines.append(_line(image, image, text + WORD, category))
        nested = "questions_answers_YN/" if images else ""
        _text(folder / "MME_Benchmark_release_version" / category / f"{nested}0001.txt", "".join(published))
    _lines(folder / "llava_mme.jsonl", lines)


def mmbench(out: Path) -> None:
    """English as of 2023, every row with its picture; Chinese with pictures by reference, as newer files have them."""
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]
    columns += ["comment", "split"]
    for folder, file, question, refers in (
        ("mmbench", "mmbench_dev_20230712.tsv", "Which color do you see?", False),
        ("mmbench_cn", "mmbench_dev_cn_20231003.tsv", "你看到哪种颜色", True),
    ):
        lines = ["\t".join(columns)]
        for turn, (index, scene) in itertools.product(range(4), enumerate(SCENES)):
            options = COLOURS[:2] if index == 0 else COLOURS  # the first question has two options
            if turn >= len(options):
                continue
            turned = [*options[-turn:], *options[:-turn]] if turn else list(options)
            image = str(index) if refers and turn else base64.b64encode(_encoded(scene, "JPEG")).decode()
            cells = [str(index + 1_000_000 * turn), question, "A drawing." if index == 1 else "", *turned]
            cells += [""] * (4 - len(turned)) + ["ABCD"[turned.index(scene.colour)], "attribute_recognition", image]
            lines.append("\t".join([*cells, "drawn", "finegrained_perception (instance-level)", "", "dev"]))
        _text(out / folder / file, "\n".join(lines) + "\n")


def seed_bench(out: Path) -> None:
    folder, lines, rows = out / "seed_bench", [], []
    for number, scene in enumerate(SCENES):
        name, is_video = str(101669 + number), number == len(SCENES) - 1
        image = f"SEED-Bench-video-image/{name}_0.png" if is_video else f"SEED-Bench-image/{number}_1.png"
        _save(scene, folder / image)
        choices = {f"choice_{letter}": colour for letter, colour in zip("abcd", COLOURS, strict=True)}
        options = "\n".join(f"{letter}. {colour}" for letter, colour in zip("ABCD", COLOURS, strict=True))
        question = f"What is the color of the {scene.shape}?"
        lines.append(_line(name, image, f"{question}\n{options}{LETTER}", "video" if is_video else "image"))
        rows.append(
            {
                "question_id": name,
                "question": question,
                **choices,
                "answer": "ABCD"[COLOURS.index(scene.colour)],
                "data_id": Path(image).name,
                "data_type": "video" if is_video else "image",
                "question_type_id": 10 if is_video else 3,
            }
        )
    _lines(folder / "llava-seed-bench.jsonl", lines)
    kinds = {"Instance Attributes": 3, "Action Recognition": 10}
    _json(folder / "SEED-Bench.json", {"questions": rows, "question_type": kinds})


def llava_wild(out: Path) -> None:
    folder, questions, contexts, answers = out / "llava-bench-in-the-wild", [], [], []
    asked = {"conv": "What color is it?", "detail": "Describe this picture.", "complex": "What could it be used for?"}
    for number, (scene, category) in enumerate(zip(SCENES, itertools.cycle(asked), strict=False)):
        image = f"{number + 1:03}.jpg"
        _save(scene, folder / "images" / image)
        questions.append(_line(number, image, asked[category], category))
        contexts.append({"id": f"{number + 1:03}", "image": image, "caption": scene.sentence})
        answers.append({"question_id": number, "prompt": asked[category], "answer_id": f"gpt4-{number}",
                        "model_id": "gpt-4", "text": scene.sentence, "metadata": {}})  # fmt: skip
    _lines(folder / "questions.jsonl", questions)
    _lines(folder / "context.jsonl", contexts)
    _lines(folder / "answers_gpt4.jsonl", answers)
    prompt = "Rate both answers from 1 to 10: two numbers on the first line, your reasons on the next."
    rules = {f"llava_bench_{category}": {"role": "Assistant", "prompt": prompt} for category in asked}
    _json(folder / "rule.json", rules)


def mm_vet(out: Path) -> None:
    folder, questions = out / "mm-vet", {}
    for number, scene in enumerate(SCENES):
        _save(scene, folder / "images" / f"v1_{number}.png", "2 + 2" if number == 0 else "")
        questions[f"v1_{number}"] = {
            "imagename": f"v1_{number}.png",
            "question": "What is the sum?" if number == 0 else "What is shown?",
            "answer": "4" if number == 0 else scene.sentence,
            "imagesource": "drawn",
            "capability": ["ocr", "math"] if number == 0 else ["rec"],
        }
    _json(folder / "mm-vet.json", questions)


def mmmu(out: Path) -> None:
    """Pictures in the question and in the options, several in one question, and a question without options."""
    first, second, *_ = SCENES
    _mmmu_rows(out, "Art", "Which color does <image 1> show?", COLOURS, "ABCD"[COLOURS.index(first.colour)], [first])
    options = ("<image 1>", "<image 2>")
    _mmmu_rows(out, "Math", f"Which picture shows a {second.shape}?", options, "B", [first, second])
    _mmmu_rows(out, "Physics", "How many corners has the figure in <image 1>?", (), "['0', 'none']", [first])


def _mmmu_rows(
    out: Path, subject: str, question: str, options: Sequence[str], answer: str, scenes: Sequence[Scene]
) -> None:
    shown = [{"bytes": _encoded(scene, "PNG"), "path": f"{number}.png"} for number, scene in enumerate(scenes, 1)]
    row: dict[str, Any] = {
        "id": f"validation_{subject}_1",
        "question": question,
        "options": str(list(options)),
        "explanation": "",
        **{f"image_{n}": shown[n - 1] if n <= len(shown) else None for n in range(1, 8)},
        "img_type": "['Other']",
        "answer": answer,
        "topic_difficulty": "Easy",
        "question_type": "multiple-choice" if options else "open",
        "subfield": subject,
    }
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({name: picture if name.startswith("image_") else pa.string() for name in row})
    file = out / "mmmu" / subject / "validation-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row], schema), file)


def _line(name: int | str, image: str, text: str, category: str = "default") -> dict[str, Any]:
    """A line of LLaVA's question files."""
    return {"question_id": name, "image": image, "text": text, "category": category}


def _annotated(answer: str) -> list[dict[str, Any]]:
    """Of ten people, eight say so."""
    said = [answer] * 8 + ["toy", "thing"]
    return [{"answer": one, "answer_confidence": "yes", "answer_id": n} for n, one in enumerate(said, 1)]


def _other(names: Sequence[str], name: str) -> str:
    return names[(names.index(name) + 1) % len(names)]


def _encoded(scene: Scene, format: str, word: str = "") -> bytes:
    scene.draw(word).save(held := io.BytesIO(), format)
    return held.getvalue()


def _save(scene: Scene, file: Path, word: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_encoded(scene, "PNG" if file.suffix == ".png" else "JPEG", word))


def _lines(file: Path, rows: Iterable[Any]) -> None:
    _text(file, "".join(json.dumps(row) + "\n" for row in rows))


def _json(file: Path, content: Any) -> None:
    _text(file, json.dumps(content))


def _text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m examples.small_benchmarks OUT")
    with new_folder(Path(sys.argv[1])) as out:
        write_all(out)
    print(f"all benchmarks, small, are in {sys.argv[1]}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
