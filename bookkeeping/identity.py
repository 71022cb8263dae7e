"""What a phase's result depends on, as a hash: its settings, what it reads, the libraries' versions, and the
code that it calls, from the function of main_superglue.py that assembles it downwards.

The code is found without running it: from that function on, every name and attribute that is defined in one
of COMPUTING is followed. A method is taken to be meant wherever its name stands, so that rather too much is
covered than too little. Docstrings, comments and the bookkeeping are left out: they change no result.
"""
import ast
import functools
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
COMPUTING = ("main_superglue", "meta_policy", "baselines", "curriculum", "models", "metrics", "data_utils",
             "tasks")
ASSEMBLY = "main_superglue"
VERSIONS = ("torch", "transformers")
ALWAYS_CALLED = ("forward",)  # of a class, beside the methods whose names begin with __
# methods that leave a phase's result alone: how a kill is survived, what is said of it, how much is kept
NO_RESULT = ("state_dict", "load_state_dict", "add_row", "write_row", "note_code", "kept_layers")
# of environment.json: where something was computed and by what commit, which is no part of an identity
PROVENANCE = ("python", "torch", "transformers", "platform", "cpu", "cpu_threads", "gpu", "deterministic",
              "cuda", "git_commit", "git_changes")


@dataclass(frozen=True)
class Module:
    """definitions: {name or Class.method: syntax trees}; imports: {name here: (module, name there)}; methods:
    {name: the Class.method that have it}."""
    definitions: dict
    imports: dict
    methods: dict


@functools.cache
def parse(name):
    """The Module of a file of the project; None where there is none."""
    path = HERE / f"{name}.py"
    if not path.is_file():
        return None
    definitions, imports, methods = {}, {}, {}
    for node in without_docstrings(ast.parse(path.read_text(encoding="utf-8"))).body:
        if isinstance(node, ast.ImportFrom) and node.module in COMPUTING:
            imports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            definitions[node.name] = [node]
        elif isinstance(node, ast.ClassDef):
            functions = [entry for entry in node.body if isinstance(entry, ast.FunctionDef)]
            rest = [entry for entry in node.body if not isinstance(entry, ast.FunctionDef)]
            definitions[node.name] = [*node.bases, *node.decorator_list, *rest]
            for entry in functions:
                definitions[f"{node.name}.{entry.name}"] = [entry]
                methods.setdefault(entry.name, []).append(f"{node.name}.{entry.name}")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for part in ast.walk(target):
                    if isinstance(part, ast.Name):
                        definitions[part.id] = [node]
    return Module(definitions, imports, methods)


def without_docstrings(tree):
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                body[0] = ast.Pass()
    return tree


def called_by(module, name):
    """(module, name) of everything that a definition names directly."""
    here = parse(module)
    if name in here.imports:
        yield here.imports[name]
    if "." not in name:  # of a class, its own
        for full in here.definitions:
            owner, _, method = full.partition(".")
            if owner == name and method and (method in ALWAYS_CALLED or method.startswith("__")):
                yield module, full
    else:
        yield module, name.partition(".")[0]
    for tree in here.definitions.get(name, ()):
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and (node.id in here.definitions or node.id in here.imports):
                yield module, node.id
            elif isinstance(node, ast.Attribute) and node.attr not in NO_RESULT:
                for other in COMPUTING:
                    found = parse(other)
                    yield from ((other, full) for full in found.methods.get(node.attr, ())) if found else ()


@functools.cache
def code_of(function, without=()):
    """sha256 of the code that the function named `function` of main_superglue.py calls, itself included, but
    for what stands under the names `without`; None if there is no such function."""
    if function not in parse(ASSEMBLY).definitions:
        return None
    reached, waiting = set(), [(ASSEMBLY, function)]
    while waiting:
        place = waiting.pop()
        if place not in reached and place[1].partition(".")[0] not in without and parse(place[0]):
            reached.add(place)
            waiting += called_by(*place)
    digest = hashlib.sha256()
    for module, name in sorted(reached):
        trees = parse(module).definitions.get(name, ())
        digest.update(repr((module, name, [ast.dump(tree) for tree in trees])).encode())
    return digest.hexdigest()


def describe_code(function, without=()):
    """The code of a function as result.json keeps it, for code_has_changed."""
    return {
        "function": function.__name__, "without": list(without),
        "sha256": code_of(function.__name__, tuple(without))
    }


def code_has_changed(described):
    """Whether what describe_code gave is no longer the project's code."""
    return described["sha256"] != code_of(described["function"], tuple(described["without"]))


def identity_of(depends, function, without=()):
    """(sha256, what it is of): of `depends`, the versions of the libraries that compute, and the code of
    `function`."""
    depends = {**depends, "versions": {package: version(package) for package in VERSIONS},
               "code": code_of(function.__name__, tuple(without))}
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest(), depends


def provenance_of(environment):
    """The part of an environment.json that says where something was computed; an older one has less of it."""
    return {name: environment[name] for name in PROVENANCE if name in environment}
