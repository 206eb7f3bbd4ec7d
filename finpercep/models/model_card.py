"""The beginning of a model card: what `save_pretrained` writes as README.md, where there is none."""

MODEL_CARD = """---
{{ card_data }}
---

A fine-grained perceptual reward model: a score in [0, 1] (higher is better) and a map of faults at the image's own
resolution (1 = degraded). `config.json` describes it.

```python
import finpercep

model = finpercep.RewardModel.from_pretrained("this folder, or its hub id")
out = model.score(["photo.png"])
out.score, out.map
```

To be added by whoever trained it: the data, the command, the figures of `finpercep evaluate-reward`, the limits.
"""
# The front matter is the hub's.
