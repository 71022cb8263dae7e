"""Tiny random encoders of many families, each with a tokenizer that puts special tokens where its family
does.

Sizes: 4 layers of 16 hidden units, some 300 tokens, 100 positions.
"""
import functools
import json

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from conftest import corpus, tiny_sizes, write_wordpiece

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def write_wordpieces(folder):
    """BERT's kind of tokenizer."""
    return write_wordpiece(folder, BERT_SPECIAL, tokenizer_class="BertTokenizer", do_lower_case=True)


def write_mpnet(folder):
    return write_wordpiece(folder, (*ROBERTA_SPECIAL, "[UNK]"), tokenizer_class="MPNetTokenizer")


@functools.cache
def trained(kind, special):
    """A Tokenizer learnt from the sample, as text: "bytes" (byte-level BPE) or "pieces" (Unigram)."""
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=list(special),
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=list(special),
                                          unk_token=next(sign for sign in special if "nk" in sign.lower()))
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer.to_str()


def write_trained(kind, special, single, pair):
    """A writer of a tokenizer with its special tokens where the templates `single` and `pair` have them."""
    def write(folder):
        tokenizer = Tokenizer.from_str(trained(kind, special))
        if pair:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=single, pair=pair, special_tokens=[(sign, special.index(sign)) for sign in special])
        named = {sign.strip("<>[]").lower(): sign for sign in special}
        named = {"cls": named.get("s"), "sep": named.get("/s"), **named}
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, model_max_length=96,
            model_input_names=["input_ids", "attention_mask", *["token_type_ids"][:":1" in str(pair)]],
            **{f"{role}_token": named[role] for role in ("pad", "unk", "cls", "sep", "mask")
               if named.get(role)})
        fast.save_pretrained(folder)
        return len(fast)
    return write


TEMPLATE = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
ROBERTA_TEMPLATE = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
XLNET_SPECIAL = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>")
write_roberta = write_trained("bytes", ROBERTA_SPECIAL, *ROBERTA_TEMPLATE)
write_xlm_roberta = write_trained("pieces", ROBERTA_SPECIAL, *ROBERTA_TEMPLATE)
write_bytes = write_trained("bytes", BERT_SPECIAL, *TEMPLATE)
write_pieces = write_trained("pieces", BERT_SPECIAL, *TEMPLATE)
write_xlnet = write_trained("pieces", XLNET_SPECIAL, "$A <sep> <cls>", "$A <sep> $B <sep> <cls>")
write_gpt2 = write_trained("bytes", ("<|endoftext|>",), None, None)

ROBERTA = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, type_vocab_size=1)
BERT_IDS = dict(pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3)
DEBERTA = dict(type_vocab_size=0, relative_attention=True, pos_att_type=["p2c", "c2p"])
# family -> (configuration class, writer of its tokenizer, what its configuration has beside tiny_sizes; in a
# tuple: instead of them)
FAMILIES = {
    "BERT": ("BertConfig", write_wordpieces, {}),
    "RoBERTa": ("RobertaConfig", write_roberta, ROBERTA),
    "XLM-R": ("XLMRobertaConfig", write_xlm_roberta, ROBERTA),
    "DistilBERT": ("DistilBertConfig", write_wordpieces, (
        dict(dim=16, n_layers=4, n_heads=2, hidden_dim=32, max_position_embeddings=100),)),
    "ELECTRA": ("ElectraConfig", write_wordpieces, dict(embedding_size=8)),
    "ALBERT": ("AlbertConfig", write_pieces, dict(embedding_size=8)),
    "MPNet": ("MPNetConfig", write_mpnet, dict(pad_token_id=1, bos_token_id=0, eos_token_id=2)),
    "DeBERTa": ("DebertaConfig", write_bytes, DEBERTA),
    "DeBERTa v2": ("DebertaV2Config", write_pieces, dict(DEBERTA, conv_kernel_size=3)),
    "DeBERTa v3": ("DebertaV2Config", write_pieces, dict(
        DEBERTA, max_relative_positions=-1, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True,
        position_biased_input=False)),
    "ConvBERT": ("ConvBertConfig", write_wordpieces, dict(
        embedding_size=16, conv_kernel_size=3, head_ratio=1)),
    "ConvBERT, padding=max_length": ("ConvBertConfig", write_wordpieces, dict(
        embedding_size=16, conv_kernel_size=3, head_ratio=1)),
    "MobileBERT": ("MobileBertConfig", write_wordpieces, dict(
        embedding_size=16, intra_bottleneck_size=8, true_hidden_size=8)),
    "SqueezeBERT": ("SqueezeBertConfig", write_wordpieces, dict(
        embedding_size=16, q_groups=2, k_groups=2, v_groups=2, intermediate_groups=2, output_groups=2)),
    "RoFormer": ("RoFormerConfig", write_wordpieces, {}),
    "BigBird": ("BigBirdConfig", write_pieces, dict(BERT_IDS, block_size=16)),
    "BigBird, sparse": ("BigBirdConfig", write_pieces, dict(BERT_IDS, block_size=2, num_random_blocks=1)),
    "Longformer": ("LongformerConfig", write_roberta, dict(ROBERTA, attention_window=[8] * 4)),
    "ModernBERT": ("ModernBertConfig", write_bytes, dict(BERT_IDS, local_attention=16)),
    "XLNet": ("XLNetConfig", write_xlnet, (dict(d_model=16, n_layer=4, n_head=2, d_inner=32),)),
    "FNet": ("FNetConfig", write_pieces, dict(type_vocab_size=2)),
    "Funnel": ("FunnelConfig", write_wordpieces, (dict(
        d_model=16, block_sizes=[2, 2], n_head=2, d_head=8, d_inner=32, num_decoder_layers=1),)),
    "GPT-2": ("GPT2Config", write_gpt2, (dict(n_embd=16, n_layer=4, n_head=2, n_positions=100),)),
    "GPT-2 with BERT's tokenizer": ("GPT2Config", write_wordpieces, (
        dict(n_embd=16, n_layer=4, n_head=2, n_positions=100),)),
    "BERT as a decoder": ("BertConfig", write_wordpieces, dict(is_decoder=True)),
}


def make_family(family, folder, seed=0, **changes):
    """Write a tiny random encoder of a family with its tokenizer; returns the folder. changes: of its
    configuration."""
    folder.mkdir(parents=True)
    name, write_tokenizer, more = FAMILIES[family]
    size = write_tokenizer(folder)
    sizes = {"vocab_size": size, **more[0]} if isinstance(more, tuple) else {**tiny_sizes(size), **more}
    config = getattr(transformers, name)(**{**sizes, **changes})
    config.architectures = [name.replace("Config", "Model")]  # Funnel has two, and asks
    torch.manual_seed(seed)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


def edit_json(path, **changes):
    """Change entries of a JSON file; ... takes one out."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
