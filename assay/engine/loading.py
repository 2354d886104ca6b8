"""From a config to a model and what turns prompts into its sequences. Knows no queue and no thread."""

from assay.config import EngineConfig
from assay.engine.calibrated import calibrated
from assay.engine.encoder import PromptEncoder
from assay.engine.tokenizer import answer_token_ids, load_tokenizer
from assay.errors import ConfigError
from assay.model.registry import LoadedModel, load_model
from assay.model.weights import logit_score_ids, resolve


def load(config: EngineConfig) -> tuple[LoadedModel, PromptEncoder, int]:
    """(model, encoder, the longest sequence in tokens). Raises SetupError."""
    folder = resolve(config.model, config.revision, config.allow_pickle)
    adapter = resolve(config.adapter) if config.adapter else None
    text_tokenizer = load_tokenizer(folder, config.chat_template_path)
    answer_ids = answer_token_ids(config.classifier_from_token, text_tokenizer.tokenizer) or logit_score_ids(folder)
    model = load_model(
        folder,
        config.dtype,
        config.device,
        config.activation,
        adapter,
        config.allow_pickle,
        answer_ids,
        config.quantization,
        config.deterministic,
    )
    max_model_len = _max_model_len(config.max_model_len, text_tokenizer.model_max_length, model.max_positions)
    encoder = PromptEncoder(
        text_tokenizer,
        model.vocab_size,
        max_model_len,
        model.type_vocab_size,
        pairs_need_template=answer_ids is not None,
        trusts_templates=config.trust_request_chat_template,
    )
    return calibrated(model, config), encoder, max_model_len


def _max_model_len(asked: int | None, tokenizer: int | None, positions: int) -> int:
    """The smallest of what the operator asks, what the tokenizer's config says and what the model can number."""
    if asked is not None and asked > positions:
        raise ConfigError(f"max_model_len is {asked}, but this model reads at most {positions} tokens.")
    return min(n for n in (asked, tokenizer, positions) if n is not None)
