"""From whole settings to what the builders of a run take, as timm_mix.train.run hands it on."""

from timm_mix.train.cost import predict_cost
from timm_mix.train.loop.build import build_loaders, build_task


def cost_of(config, **counts):
    return predict_cost(config.model, config.task, config.data, **{"epochs": config.optimise.epochs, **counts})


def clock_of(config, steps_per_epoch):
    return {"epochs": config.optimise.epochs, "steps_per_epoch": steps_per_epoch, "seed": config.run.seed}


def task_of(config, model, num_classes, steps_per_epoch, **settings):
    return build_task(config.task, model, num_classes, **clock_of(config, steps_per_epoch), **settings)


def loaders_of(config, data, data_config, **place):
    return build_loaders(config.data, config.augment, data, data_config, seed=config.run.seed, **place)
