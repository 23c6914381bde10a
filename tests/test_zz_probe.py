import torch
from viker.models.encode import answer_rows, collate
from viker.models.forward import answer_logits
def test_probe(tiny, training_examples):
    rows=[tiny.encoder.encode(e) for e in training_examples[:6]]
    b,p,_=answer_rows(rows)
    with torch.no_grad(): x=answer_logits(tiny.model, collate(rows,pad_id=0,side="right"),b,p)
    print("absmax", x.abs().max(), "std", x.std())
