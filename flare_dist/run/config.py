"""The former place of `flare_dist.config.config`, kept for one version for scripts that read configurations."""

from flare_dist.config.config import Config as Config
from flare_dist.config.load import build_config as build_config
from flare_dist.config.load import config_parser as config_parser
from flare_dist.config.load import load_config as load_config
from flare_dist.config.saved import as_dict as as_dict
