"""Small files in the formats that benchmarks and LLaVA's eval.zip publish, in its layout of folders."""

import json

from PIL import Image

from victor_jax.evaluation import mme, pope

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
TEN = [{"answer": "dog"}] * 3 + [{"answer": "A cat."}] * 7
NESTED = ("artwork", "celebrity", "landmark", "posters", "scene")  # folders of MME with one more level


def lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def whole(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
    return file


def pictures(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 14), (number, 99, 199)).save(folder / name, format="PNG")


def question(name, image, text, category="default"):
    return {"question_id": name, "image": image, "text": text, "category": category}


def vqav2(folder):
    asked = [question(n, f"COCO_test2015_{n:012}.jpg", f"What is {n}?{SHORT}") for n in (262144000, 262144002)]
    lines(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", asked)
    lines(folder / "llava_vqav2_mscoco_test2015.jsonl", [asked[1], question(7, "x.jpg", f"Why?{SHORT}"), asked[0]])
    pictures(folder / "test2015", *(row["image"] for row in asked))
    rows = [{"question_id": 5, "image_id": 42, "question": "What is it?"}]
    whole(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"data_type": "mscoco", "questions": rows})
    rows = [{"question_id": 5, "image_id": 42, "answers": TEN, "answer_type": "other"}]
    whole(folder / "v2_mscoco_val2014_annotations.json", {"annotations": rows})
    pictures(folder / "val2014", "COCO_val2014_000000000042.jpg")


def gqa(folder):
    asked = [question("201307251", "n161313.jpg", f"Is it overcast?{SHORT}"), question("8", "n1.jpg", f"Who?{SHORT}")]
    lines(folder / "llava_gqa_testdev_balanced.jsonl", asked)
    truth = {
        "201307251": {"answer": "no", "types": {"structural": "verify"}, "imageId": "n161313"},
        "8": {"answer": "man", "types": {"structural": "query"}, "imageId": "n1"},
    }
    whole(folder / "data" / "testdev_balanced_questions.json", truth)
    pictures(folder / "data" / "images", "n161313.jpg", "n1.jpg")


def vizwiz(folder):
    names = [f"VizWiz_test_0000000{n}.jpg" for n in (0, 1)]
    rows = [question(n, name, f"What is this? {UNANSWERABLE}{SHORT}") for n, name in enumerate(names)]
    lines(folder / "llava_test.jsonl", rows)
    pictures(folder / "test", *names)
    name = "VizWiz_val_00000000.jpg"
    row = {"image": name, "question": "What now?", "answers": TEN, "answer_type": "other", "answerable": 1}
    whole(folder / "val.json", [row])
    pictures(folder / "val", name)


def textvqa(folder):
    texts = [f"What Brand?\nReference OCR token: NIKE, air{SHORT}", f"What colour?\nReference OCR token: {SHORT}"]
    lines(folder / "llava_textvqa_val_v051_ocr.jsonl", [question("003a", "003a.jpg", text) for text in texts])
    rows = [
        {"image_id": "003a", "question": asked, "question_id": n, "answers": [answer] * 10}
        for n, (asked, answer) in enumerate((("What Brand?", "nike"), ("what colour?", "red")))
    ]
    whole(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    pictures(folder / "train_images", "003a.jpg")


def scienceqa(folder):
    def row(name, text, **image):
        turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "B"}]
        return {"id": name, **image, "conversations": turns}

    rows = [
        row("4", "Which?\nA. x\nB. y"),
        row("5", "<image>\nContext: It is.\nWhat?\nA. x\nB. y", image="5/image.png"),
    ]
    whole(folder / "llava_test_CQM-A.json", rows)
    problems = {n: {"answer": 1, "choices": ["x", "y"], "image": i} for n, i in (("4", None), ("5", "image.png"))}
    whole(folder / "problems.json", problems | {"1": {"answer": 0, "choices": ["x"], "image": None}})
    whole(folder / "pid_splits.json", {"train": ["1"], "test": ["4", "5"]})
    pictures(folder / "images" / "test", "5/image.png")


def pope_labels(folder):
    """Labels and questions, in the order of LLaVA's file."""
    rows = [
        {"question_id": n, "image": "COCO_val2014_1.jpg", "text": f"Is there a {thing} in the image?", "label": label}
        for n, (thing, label) in enumerate((("dog", "yes"), ("cat", "no"), ("bus", "yes")), 1)
    ]
    questions = []
    for split in ("adversarial", "popular", "random"):
        lines(folder / "coco" / f"coco_pope_{split}.json", rows)
        for row in rows:
            questions.append(question(len(questions) + 1, row["image"], row["text"] + SHORT, split))
    lines(folder / "llava_pope_test.jsonl", questions)
    assert {row["category"] for row in questions} == set(pope.SPLITS)
    pictures(folder / "val2014", "COCO_val2014_1.jpg")


def mme_folder(folder):
    """MME_Benchmark_release_version: two questions about one image in each category."""
    for category in (*mme.PERCEPTION, *mme.COGNITION):
        texts, images = ("questions_answers_YN", "images") if category in NESTED else ("", "")
        (folder / category / texts).mkdir(parents=True)
        (folder / category / texts / "0001.txt").write_text(
            f"Is this a {category}?  Please answer yes or no.\tYes\nIs this a cow? Please answer yes or no.\tNo\n"
        )
        pictures(folder / category / images, "0001.jpg")
    return folder


def mme_questions(folder):
    rows = []
    for category in (*mme.COGNITION, *mme.PERCEPTION):
        image = f"{category}/images/0001.jpg" if category in NESTED else f"{category}/0001.jpg"
        rows += [question(image, image, f"Is this a {thing}?{SHORT}", category) for thing in (category, "cow")]
    lines(folder / "llava_mme.jsonl", rows)
    mme_folder(folder / "MME_Benchmark_release_version")


def seed_bench(folder):
    images = "SEED-Bench-image/1_2", "SEED-Bench-video-image/v3.png"
    text = f"How many?\nA. One\nB. Two\nC. Three\nD. Four{LETTER}"
    lines(
        folder / "llava-seed-bench.jsonl", [question(n, i, text) for n, i in zip((101669, "v3"), images, strict=True)]
    )
    rows = [
        {"question_id": name, "question_type_id": kind, "data_type": data, "answer": "B"}
        for name, kind, data in (("101669", 1, "image"), ("v3", 10, "video"))
    ]
    kinds = {"Scene Understanding": 1, "Action Recognition": 10}
    whole(folder / "SEED-Bench.json", {"questions": rows, "question_type": kinds})
    pictures(folder, *images)


FOLDERS = {
    "vqav2": vqav2,
    "gqa": gqa,
    "vizwiz": vizwiz,
    "textvqa": textvqa,
    "scienceqa": scienceqa,
    "pope": pope_labels,
    "MME": mme_questions,
    "seed_bench": seed_bench,
}
