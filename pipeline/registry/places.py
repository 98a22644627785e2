"""Opening the store that an operator names."""

from pydantic import ValidationError

from pipeline.core.errors import InputError
from pipeline.core.record import first_problem
from pipeline.core.workspace import Workspace
from pipeline.core.yaml_files import read_yaml
from pipeline.oci.layout import OciLayout
from pipeline.oci.reference import LayoutPath, Place, Reference, Server, parse_reference
from pipeline.oci.registry import Registry
from pipeline.oci.store import Store
from pipeline.params.params import RegistryParams


def configured_place(workspace: Workspace) -> Place:
    """Return where params.yaml says that releases go; only its section `registry` is read."""
    values = read_yaml(workspace.params_path)
    section = values.get("registry") if isinstance(values, dict) else None
    try:
        registry = RegistryParams.model_validate(section)
    except ValidationError as error:
        name = workspace.params_path.name
        raise InputError(f"{name}: registry: {first_problem(error, section)}") from error
    return place_of(workspace, registry)


def place_of(workspace: Workspace, registry: RegistryParams) -> Place:
    """Return the place that the section `registry` means."""
    if registry.url is None:
        return LayoutPath(workspace.registry_dir.relative_to(workspace.root))
    return Server(registry.url, registry.repository)


def open_place(workspace: Workspace, place: Place) -> Store:
    """Return the store at `place`; a relative directory is one of the workspace."""
    if isinstance(place, Server):
        return Registry(place.url, place.repository)
    return OciLayout(workspace.root / place.path, shown_as=place.path.as_posix())


def open_reference(workspace: Workspace, text: str | None) -> tuple[Store, str | None]:
    """Return the store that a reference means, and the tag or digest in it, if there is one.

    Without a text it is the registry of params.yaml.
    """
    reference = parse_reference(text) if text else Reference(None, None)
    return open_place(workspace, reference.place or configured_place(workspace)), reference.name


def open_release(workspace: Workspace, text: str) -> tuple[Store, str]:
    """Return the same for a reference that has to name a release. Raises InputError."""
    store, name = open_reference(workspace, text)
    if name is None:
        raise InputError(
            f"{text}: expected a tag or digest as well; `quantline ls {text}` lists the tags"
        )
    return store, name
