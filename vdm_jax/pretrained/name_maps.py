"""Name maps: names of other libraries' tensors -> paths of our parameters.

There is one map per network. A row has a pattern, which must match the whole name of
the tensor, and our path, in which \\1 is the first group of the match. A path of None
means that the tensor is not read. A path that starts with `TRANSPOSE` belongs to a
matrix that is stored as [out, in]; our kernels are [in, out].
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
        (rf"{_BERT_LAYER}{theirs}\.{kind}", prefix + rf"layer_\1/{ours}/{leaf}")
        for theirs, ours in (
            (r"attention\.self\.query", "q"),
            (r"attention\.self\.key", "k"),
            (r"attention\.self\.value", "v"),
            (r"attention\.output\.dense", "out"),
            (r"intermediate\.dense", "mlp_in"),
            (r"output\.dense", "mlp_out"),
        )
        for kind, prefix, leaf in (
            ("weight", TRANSPOSE, "kernel"),
            ("bias", "", "bias"),
        )
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
    (r"(?:bert\.)?pooler\..*|cls\..*", None),  # heads on the encoder
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
    # Version 1.0 has wi. Version 1.1 has wi_1 with the gate wi_0.
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
