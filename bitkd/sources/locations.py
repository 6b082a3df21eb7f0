"""Where the sources of a run are."""

from dataclasses import replace
from pathlib import Path

from bitkd.config.schema import DEMO, Config, cache_root, store_root
from bitkd.data.demo.files import ensure_demo
from bitkd.data.documents import Documents, FileDocuments, HubDocuments
from bitkd.data.hub import resolve_pretrained
from bitkd.data.task_checks import check_hub_id
from bitkd.errors import InputError, writable


def locate(config: Config) -> tuple[Config, Path]:
    """Resolve `demo`, local paths and hub ids. Raises InputError if one is missing or the hub cannot be reached.

    Returns the configuration with folders in place of `demo`, and the folder of the pre-trained BERT.
    """
    store = store_root(config)
    data, model = config.data, config.model
    if DEMO in (data.dir, model.pretrained) or DEMO in data.corpus:
        with writable(store.parent):
            demo = ensure_demo(demo_folder(config))
        data = replace(
            data,
            dir=str(demo.data) if data.dir == DEMO else data.dir,
            corpus=[str(demo.corpus) if path == DEMO else path for path in data.corpus],
        )
        model = replace(model, pretrained=str(demo.model) if model.pretrained == DEMO else model.pretrained)
    return replace(config, data=data, model=model), resolve_pretrained(model.pretrained)


def demo_folder(config: Config) -> Path:
    """Where the task, corpus and model are that bitkd makes itself."""
    return cache_root(config) / "demo"


def make_documents(config: Config) -> Documents:
    """The corpus of General KD. Raises InputError if the settings name none, or two."""
    data = config.data
    if bool(data.corpus) == bool(data.hub_corpus.path):
        what = "both data.corpus and data.hub_corpus.path are given" if data.corpus else "data.corpus is empty"
        raise InputError(
            f"General KD needs a text corpus and {what}; give text files or folders with data.corpus=[PATH,…], or a "
            "dataset on the hub with data.hub_corpus.path=ID"
        )
    if data.hub_corpus.path:
        check_hub_id(data.hub_corpus.path, "data.hub_corpus.path=")
        return HubDocuments(data.hub_corpus, data.streaming)
    return FileDocuments(data.corpus)
