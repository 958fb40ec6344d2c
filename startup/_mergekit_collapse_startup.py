"""Runs at every start of Python in this environment: hooks MergeKit once that is imported.

MergeKit has no plugin API, so a `.pth` file beside this one imports this module. All it does then
is to put a finder into ``sys.meta_path``; a program that never imports MergeKit pays for that and
for nothing else. So nothing is imported here but ``sys``, and the package itself only once MergeKit
is there.

In a half-removed installation (this file left behind, the package gone) it does nothing and says
nothing.
"""

import sys

# A module of MergeKit -> the function of mergekit_collapse.mergekit_hook that gets it once it has
# been executed.
HOOKS = {
    "mergekit.config": "extend_configuration",
    "mergekit.merge": "wrap_run_merge",
    "mergekit.merge_methods": "register_merge_methods",
}

_PACKAGE = "mergekit_collapse"
_HOOK_MODULE = "mergekit_collapse.mergekit_hook"


class MergekitFinder:
    """Has MergeKit's modules found as ever, and hooked once they have been executed."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname not in HOOKS:
            return None
        for finder in list(sys.meta_path):
            if _is_ours(finder) or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                _hook_after_execution(fullname, spec.loader)
                return spec
        return None


def _is_ours(finder):
    """By name, since the class is another one after this module was reloaded."""
    return type(finder).__module__ == __name__


def _hook_after_execution(fullname, loader):
    """Shadow ``exec_module`` of this one loader until it has executed this one module.

    The loader stays the object, of the class, that it was: `inspect`, `importlib.resources` and
    `importlib.reload` ask for that. A reload comes through the finder again, and is hooked again.
    """
    try:
        execute = loader.exec_module

        def exec_module(module):
            # Some import hooks share one loader among all modules, and another thread may come in
            # between.
            if module.__name__ != fullname:
                execute(module)
                return
            vars(loader).pop("exec_module", None)
            execute(module)
            hook(module)

        loader.exec_module = exec_module
    except (AttributeError, TypeError) as error:
        _say_not_hooked(fullname, error)


def hook(module):
    """Hand an executed module of MergeKit to the package; never break who imported it."""
    try:
        # Not importlib.import_module: that is one import more than a start of Python needs.
        mergekit_hook = __import__(_HOOK_MODULE, fromlist=["HOOKS"])
        getattr(mergekit_hook, HOOKS[module.__name__])(module)
    except Exception as error:
        # Gone: the package, or all of it but an empty folder, which Python takes for a namespace.
        gone = isinstance(error, ModuleNotFoundError) and error.name in (_PACKAGE, _HOOK_MODULE)
        if not gone:
            _say_not_hooked(module.__name__, error)


def _say_not_hooked(name, error):
    """No exception: a recipe without a `compat:` block must merge as without the plugin."""
    lost = "a `compat:` block is IGNORED"
    if name == "mergekit.merge_methods":
        lost = "its methods are MISSING"
    print(
        f"mergekit-collapse: {name} could not be hooked, so {lost}: "
        f"{type(error).__name__}: {error}; `mergekit-collapse doctor` says more",
        file=sys.stderr,
    )


def activate():
    """Watch for MergeKit, and hook what of it was imported already. Once is as good as often."""
    if not any(_is_ours(finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MergekitFinder())
    for name in HOOKS:
        if name in sys.modules:
            hook(sys.modules[name])


activate()
