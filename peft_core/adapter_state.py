"""What makes an adapted model differ from the stock one: what trains, and what moves with it."""

from torch import Tensor, nn

from peft_core.attach import is_inserted, record_of
from peft_core.stock import head_of, trained_head


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What makes this model differ from the stock one: inserted tensors, stock weights that train, the head, and what
    was unfrozen by hand."""
    record = record_of(model)
    changed = {key for adaptation in record.adaptations.values() for key in adaptation.trained}
    changed |= trained_head(model).keys() | set(also_trained(model)) | _moved_statistics(model)
    state = model.state_dict()
    return {key: value for key, value in state.items() if is_inserted(key) or key in changed}


def also_trained(model: nn.Module) -> list[str]:
    """Stock parameters outside the head that train although no adaptation asked for them, and those that a file held."""
    record = record_of(model)
    known = {key for adaptation in record.adaptations.values() for key in adaptation.trained} | head_of(model).keys()
    trains = [key for key, p in model.named_parameters() if p.requires_grad and not is_inserted(key)]
    return [key for key in dict.fromkeys((*trains, *record.loaded)) if key not in known]


def _moved_statistics(model: nn.Module) -> set[str]:
    if not any(adaptation.method.moves_statistics for adaptation in record_of(model).adaptations.values()):
        return set()
    kept = model.state_dict().keys() - dict(model.named_parameters()).keys()
    return {key for key in kept if key.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")}
