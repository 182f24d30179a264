"""lm-evaluation-harness: loglikelihoods by way of an echoed prompt, and generation until a stop string."""

import sys

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

base, model = sys.argv[1], sys.argv[2]
lm = LocalCompletionsAPI(
    model=model, base_url=f"{base}/v1/completions", max_retries=1, batch_size=2
)
assert lm.tokenizer_backend == "remote", "the server tells of its tokenizer"


def ask(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


scores = lm.loglikelihood(ask("loglikelihood", ("The quick", " fox"), ("a", "b")))
assert [round(score, 3) for score, _ in scores] == [-6.0, -1.5], scores
assert not any(is_greedy for _, is_greedy in scores)
(text,) = lm.generate_until(ask("generate_until", ("a", {"until": ["fox"], "max_gen_toks": 64})))
assert text and "fox" not in text, text
