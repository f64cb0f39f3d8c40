"""Where the tensors of others' networks go in ours: one table per network.

A row is a pattern of their name, which it must match whole, and our path, in which \\1
is what the first bracket matched; None: not read. A path behind `TURNED` is of a matrix
that lies the other way: theirs are [out, in], our kernels [in, out].
"""

TRANSPOSE = "transpose of "

NameMap = tuple[tuple[str, str | None], ...]

_BERT_LAYER = r"(?:bert\.)?encoder\.layer\.(\d+)\."
BERT: NameMap = (
    (r"(?:bert\.)?embeddings\.word_embeddings\.weight", "token/embedding"),
    (r"(?:bert\.)?embeddings\.position_embeddings\.weight", "position/embedding"),
    (r"(?:bert\.)?embeddings\.token_type_embeddings\.weight", "segment/embedding"),
    (r"(?:bert\.)?embeddings\.LayerNorm\.weight", "norm/scale"),
    (r"(?:bert\.)?embeddings\.LayerNorm\.bias", "norm/bias"),
    *(
        (rf"{_BERT_LAYER}{theirs}\.{kind}", place + rf"layer_\1/{ours}/{leaf}")
        for theirs, ours in (
            (r"attention\.self\.query", "q"),
            (r"attention\.self\.key", "k"),
            (r"attention\.self\.value", "v"),
            (r"attention\.output\.dense", "out"),
            (r"intermediate\.dense", "mlp_in"),
            (r"output\.dense", "mlp_out"),
        )
        for kind, place, leaf in (("weight", TRANSPOSE, "kernel"), ("bias", "", "bias"))
    ),
    *(
        (rf"{_BERT_LAYER}{theirs}\.LayerNorm\.{kind}", rf"layer_\1/{ours}/{leaf}")
        for theirs, ours in (
            (r"attention\.output", "attention_norm"),
            ("output", "norm"),
        )
        for kind, leaf in (("weight", "scale"), ("bias", "bias"))
    ),
    (r"(?:bert\.)?embeddings\.position_ids", None),  # 0, 1, 2, ...
    (r"(?:bert\.)?pooler\..*|cls\..*", None),  # of the first token alone; of training
)

_T5_LAYER = r"encoder\.block\.(\d+)\.layer\."
T5: NameMap = (
    (r"shared\.weight|encoder\.embed_tokens\.weight", "token/embedding"),
    (
        r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
        TRANSPOSE + "position/table",
    ),
    (
        _T5_LAYER + r"0\.SelfAttention\.([qkv])\.weight",
        TRANSPOSE + r"layer_\1/\2/kernel",
    ),
    (_T5_LAYER + r"0\.SelfAttention\.o\.weight", TRANSPOSE + r"layer_\1/out/kernel"),
    (_T5_LAYER + r"0\.layer_norm\.weight", r"layer_\1/attention_norm/scale"),
    # wi of 1.0; of 1.1, wi_0 opens and shuts wi_1.
    (
        _T5_LAYER + r"1\.DenseReluDense\.wi_0\.weight",
        TRANSPOSE + r"layer_\1/mlp_gate/kernel",
    ),
    (
        _T5_LAYER + r"1\.DenseReluDense\.wi(?:_1)?\.weight",
        TRANSPOSE + r"layer_\1/mlp_in/kernel",
    ),
    (
        _T5_LAYER + r"1\.DenseReluDense\.wo\.weight",
        TRANSPOSE + r"layer_\1/mlp_out/kernel",
    ),
    (_T5_LAYER + r"1\.layer_norm\.weight", r"layer_\1/norm/scale"),
    (r"encoder\.final_layer_norm\.weight", "norm/scale"),
    (r"decoder\..*|lm_head\..*", None),
)
