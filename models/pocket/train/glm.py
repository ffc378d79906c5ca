"""Train pocket-glm: an idea to a script, and a little small talk.

    python models/pocket/train/glm.py --out build/glm

Nothing is learnt but the answers: the questions only stand before them.
"""

import json
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from loop import Options, Trainer, autocast, options, parser
from torch import Tensor
from torch.nn import functional as F
from transformers import GlmForCausalLM

from halfreel_pocket import chats, glm, scripts

# What the gateway says before the idea (halfreel_gateway.script.INSTRUCTION); a test holds the two together.
INSTRUCTION = (
    "You write the script of a short film as JSON. Give it a title and its scenes. For each scene write the narration,"
    " the picture it begins with, how many seconds it lasts, and how it moves: still, left, right, up, down or toward."
)
OTHER_INSTRUCTIONS = (
    "Write a film script as JSON.",
    "You are a helpful assistant who writes film scripts.",
    "Turn the idea into a script with title and scenes.",
)
CHAT_RATIO = 0.04
TOKENIZER_LINES = 30_000
REPORTED, LONGEST_ANSWER = 200, 300
LONGEST = 2560  # tokens of a question and its answer; the few longer ones are left out
_IGNORED = -100


@dataclass(frozen=True)
class Example:
    """Token ids of a question and its answer, and how many of them are the question."""

    ids: np.ndarray
    question_length: int


def main() -> None:
    """Train, report on held-out looks, save in FP16."""
    arguments = parser(__doc__ or "", steps=24_000, batch=24_000, rate=1.5e-3)
    arguments.add_argument("--examples", type=int, default=600_000, help="size of the set that is learnt from")
    arguments.add_argument("--start", type=Path, help="a pocket-glm to go on from, whose tokenizer is kept")
    arguments.add_argument("--processes", type=int, default=2, help="that write the examples")
    read = arguments.parse_args()
    chosen = options(read)  # batch: tokens
    start: Path | None = read.start
    tokenizer = glm.fold_case(
        (start / "tokenizer.model").read_bytes() if start else glm.train_tokenizer(tokenizer_lines(chosen.seed))
    )
    shares = [(tokenizer, read.examples // read.processes, chosen.seed * 1000 + part) for part in range(read.processes)]
    with multiprocessing.get_context("spawn").Pool(read.processes) as pool:
        examples = [example for share in pool.starmap(write_examples, shares) for example in share]
    lengths = np.array([len(example.ids) for example in examples])
    print(f"{len(examples)} examples of {lengths.mean():.0f} tokens on average, at most {lengths.max()}", flush=True)
    model = GlmForCausalLM.from_pretrained(start, dtype=torch.float32) if start else glm.build(chosen.seed)
    model.to(chosen.device).train()
    trainer = Trainer(model, chosen, average=0.998)
    batches = batches_of(examples, lengths, chosen, trainer.step)
    for _ in trainer:
        trainer.update(cost(model, *next(batches), chosen))
    trainer.use_average()
    model.eval()
    report(model, sentencepiece.SentencePieceProcessor(model_proto=tokenizer), chosen)
    glm.save(model.half(), tokenizer, chosen.out)
    print(f"{trainer.step} steps, {trainer.seconds:.0f} s")


def cost(model: GlmForCausalLM, ids: Tensor, targets: Tensor, chosen: Options) -> Tensor:
    """Cross entropy of the answers' tokens."""
    with autocast(chosen.device):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        answered = targets != _IGNORED
        logits = model.lm_head(hidden[answered]).float()
    return F.cross_entropy(logits, targets[answered])


def question(idea: str, scene_count: int) -> str:
    """What the gateway asks; see INSTRUCTION."""
    return f"Idea: {idea}\nScenes: {scene_count or 'any'}"


def tokenizer_lines(seed: int) -> Iterator[str]:
    """Text to learn the pieces from, without letters of other scripts: bytes do for those."""
    rng = random.Random(seed)
    for _ in range(TOKENIZER_LINES):
        request = scripts.random_request(rng)
        asked, answer = chats.random_chat(rng)
        lines = [request.script, question(request.idea, request.scene_count)]
        if rng.random() < 0.05:
            lines += [asked, answer, rng.choice((INSTRUCTION, *OTHER_INSTRUCTIONS))]
        yield from (line for text in lines for line in text.split("\n") if line.isascii())


def write_examples(tokenizer: bytes, count: int, seed: int) -> list[Example]:
    """Draw `count` examples and encode them."""
    rng = random.Random(seed)
    reader = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    processor = sentencepiece.SentencePieceProcessor(model_proto=glm.keep_case(tokenizer))
    opening = len(processor.encode("\n"))
    examples = []
    while len(examples) < count:
        if rng.random() < CHAT_RATIO:
            asked, answer = chats.random_chat(rng)
            messages = [("user", asked)]
            answer_ids = processor.encode(answer)
        else:
            request = scripts.random_request(rng)
            messages = [("user", question(request.idea, request.scene_count))]
            # A grammar begins at the brace, so without the space that SentencePiece puts first.
            answer_ids = processor.encode("\n" + request.script)[opening:]
        kind = rng.random()
        if kind < 0.8:
            messages.insert(0, ("system", INSTRUCTION if kind < 0.7 else rng.choice(OTHER_INSTRUCTIONS)))
        asked_ids = glm.prompt_ids(reader, messages)
        ids = [*asked_ids, *answer_ids, glm.EOS_ID]
        if len(ids) <= LONGEST:
            examples.append(Example(np.array(ids, dtype=np.int16), len(asked_ids)))
    return examples


def batches_of(
    examples: list[Example], lengths: np.ndarray, chosen: Options, done: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of about `batch` tokens of examples of like length, without end: ids and targets, (N, T) each.

    Of a resumed run the first `done` batches are passed over.
    """
    epoch = passed = 0
    while True:
        rng = np.random.default_rng((chosen.seed, epoch))
        order = np.argsort(lengths + rng.uniform(0, 24, len(lengths)))
        bounds, start = [], 0
        while start < len(order):
            size = max(1, chosen.batch // int(lengths[order[min(start + 8, len(order) - 1)]] + 24))
            bounds.append((start, min(start + size, len(order))))
            start += size
        for first, last in rng.permutation(bounds):
            passed += 1
            if passed <= done:
                continue
            picked = [examples[index] for index in order[first:last]]
            width = max(len(example.ids) for example in picked)
            ids = np.zeros((len(picked), width), dtype=np.int64)
            targets = np.full((len(picked), width), _IGNORED, dtype=np.int64)
            for row, example in enumerate(picked):
                length = len(example.ids)
                ids[row, :length] = example.ids
                targets[row, example.question_length - 1 : length - 1] = example.ids[example.question_length :]
            yield torch.from_numpy(ids).to(chosen.device), torch.from_numpy(targets).to(chosen.device)
        epoch += 1


@torch.no_grad()
def report(model: GlmForCausalLM, processor: sentencepiece.SentencePieceProcessor, chosen: Options) -> None:
    """Print how many scripts for held-out looks hold the wanted things in their order, without any grammar's help."""
    rng = random.Random(77)
    requests = [scripts.random_request(rng, held_out=True) for _ in range(REPORTED)]
    asked = [
        glm.prompt_ids(processor, [("system", INSTRUCTION), ("user", question(request.idea, 0))])
        for request in requests
    ]
    width = max(map(len, asked))
    prompts = torch.tensor([[0] * (width - len(ids)) + ids for ids in asked], device=chosen.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in asked], device=chosen.device)
    answers = model.generate(prompts, attention_mask=mask, max_new_tokens=LONGEST_ANSWER, do_sample=False)
    ordered = exact = 0
    for number, (request, answer) in enumerate(zip(requests, answers.tolist(), strict=True)):
        text = processor.decode([token for token in answer[width:] if glm.EOS_ID < token < glm.PIECE_COUNT])
        try:
            written = [scene["picture"] for scene in json.loads(text)["scenes"]]
        except (ValueError, KeyError, TypeError):
            written = []
        exact += written == [scripts.picture(scene) for scene in request.scenes]
        things = [f"{scene.colour} {scene.shape}" for scene in request.scenes]
        ordered += len(written) == len(things) and all(a in b for a, b in zip(things, written, strict=True))
        if number < 4:
            print(f"  {request.idea!r} -> {text}")
    print(f"held out: things in order {ordered / REPORTED:.3f}, all as asked {exact / REPORTED:.3f}", flush=True)


if __name__ == "__main__":
    main()
