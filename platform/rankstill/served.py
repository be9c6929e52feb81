"""Which versions an endpoint serves, and how much of the traffic each gets; pure changes of that."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rankstill.errors import ConfigError


class Version(BaseModel):
    """A version that is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    """Its name, such as shop/3."""
    app: str = ""
    """Serve application that holds it; empty is the ingress's own."""
    fields: tuple[str, ...]
    """Item fields that make up an item's text."""
    weight: float = Field(default=1.0, ge=0)
    """Its share of the traffic, beside those of the others."""
    shadow: float = Field(default=0.0, ge=0, le=1)
    """Share of the other versions' requests that it gets copies of, whose answers nobody waits for."""
    reference: bool = False
    """Whether it only ranks for those who ask for it by name, to compare with; such as the teacher."""
    idle_since: float = 0.0
    """Unix time since which it has had no traffic; 0 where it has, or never had."""


class Served(BaseModel):
    """All versions of one name; an ingress takes it as its `user_config`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """What callers ask for, such as shop."""
    versions: tuple[Version, ...] = Field(min_length=1)
    """The champion first."""

    @property
    def champion(self) -> Version:
        """The version that callers get by default."""
        return self.versions[0]

    @property
    def alias(self) -> str:
        """What stands for the champion, such as shop@champion."""
        return f"{self.name}@champion"

    @model_validator(mode="after")
    def _somebody_answers(self) -> "Served":
        if not any(one.weight for one in self.versions):
            raise ValueError("no version has a weight above 0; give one to the champion")
        if len({one.version for one in self.versions}) < len(self.versions):
            raise ValueError("a version is named twice; name each once")
        return self

    def find(self, name: str) -> Version | None:
        """The version of this name."""
        if name == self.alias:
            return self.champion
        return next((one for one in self.versions if one.version == name), None)

    def joined(self, version: Version) -> "Served":
        """With a version beside the others, or in place of itself as it was."""
        if version.version == self.champion.version:
            return self.model_copy(update={"versions": (version, *self.versions[1:])})
        others = [one for one in self.versions if one.version != version.version]
        return Served(name=self.name, versions=(*others, version))

    def promoted(self, version: str, now: float) -> "Served":
        """With a version as champion, which gets all traffic; the one before stays warm without any."""
        chosen = self.servable(version)
        aside = [
            one if one.reference else one.model_copy(update={"weight": 0.0, "idle_since": one.idle_since or now})
            for one in self.versions
            if one is not chosen
        ]
        champion = chosen.model_copy(update={"weight": 1.0, "shadow": 0.0, "idle_since": 0.0})
        return Served(name=self.name, versions=(champion, *aside))

    def shared(self, version: str, share: float) -> "Served":
        """With a version that gets a share of the traffic, from 0 to 1, and the others the rest as they had it."""
        chosen = self.servable(version)
        rest = sum(one.weight for one in self.versions if one is not chosen)
        if share >= 1 or not rest:
            raise ConfigError(
                f"--weight is {share:.0%}, which leaves nothing for the champion; promote {version!r} instead"
            )
        weights = {one.version: one.weight / rest * (1 - share) for one in self.versions}
        versions = (
            one.model_copy(update={"weight": share if one is chosen else weights[one.version], "idle_since": 0.0})
            if one is chosen or one.weight
            else one
            for one in self.versions
        )
        return Served(name=self.name, versions=tuple(versions))

    def shadowed(self, version: str, share: float) -> "Served":
        """With a version that gets copies of a share of the others' requests."""
        chosen = self.servable(version)
        if chosen is self.champion:
            raise ConfigError(f"--shadow: {version!r} is champion, which answers already; name a challenger")
        copied = chosen.model_copy(update={"shadow": share, "idle_since": 0.0})
        return Served(name=self.name, versions=tuple(copied if one is chosen else one for one in self.versions))

    def without(self, version: str) -> "Served":
        """Without a version, whose share goes to the others."""
        chosen = self.known(version)
        if chosen is self.champion:
            raise ConfigError(f"{version!r} is champion, which the endpoint can't be without; promote another first")
        return Served(name=self.name, versions=tuple(one for one in self.versions if one is not chosen))

    def idle(self, before: float) -> list[Version]:
        """Versions that have had no traffic since then."""
        return [one for one in self.versions if not one.weight and not one.shadow and 0 < one.idle_since < before]

    def servable(self, version: str) -> Version:
        """The version of this name, which may get traffic.

        Raises:
            ConfigError: it isn't served, or only to compare with.
        """
        found = self.known(version)
        if found.reference:
            raise ConfigError(f"{version!r} is served to compare with, and gets no traffic; name a registered version")
        return found

    def known(self, version: str) -> Version:
        """The version of this name.

        Raises:
            ConfigError: it isn't served.
        """
        found = self.find(version)
        if found is None:
            names = ", ".join(repr(one.version) for one in self.versions)
            raise ConfigError(f"{version!r} is not served; the endpoint has {names}")
        return found
