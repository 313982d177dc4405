"""The networks of a server: asked by many threads, computed in one, and given back."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from hf_transfer.backbones.load import load_backbone
from hf_transfer.backbones.saving import save_model
from hf_transfer.base.errors import UserError
from hf_transfer.space.models import Networks, shown_model


@pytest.fixture
def shown(tmp_path):
    model = load_backbone("timm/test_resnet", ("a", "b"), pretrained=False, image_size=32)
    save_model(model, tmp_path / "model")
    return shown_model(tmp_path / "model")


def test_whoever_asks_one_thread_computes_and_a_network_is_loaded_once(shown):
    networks = Networks()
    together = threading.Barrier(8)

    def ask(_):
        together.wait()
        return networks.ask(shown, lambda network: (threading.get_ident(), id(network)))

    with ThreadPoolExecutor(8) as visitors:
        found = set(visitors.map(ask, range(8)))
    assert len(found) == 1
    assert {thread for thread, _ in found} != {threading.get_ident()}
    networks.close()


def test_the_memory_of_a_model_whose_folder_is_gone_comes_back_and_it_is_missed(shown):
    networks = Networks()
    networks.ask(shown, lambda network: None)
    shutil.rmtree(shown.folder)
    networks.forget_missing()
    with pytest.raises(UserError):
        networks.ask(shown, lambda network: None)
    networks.close()
