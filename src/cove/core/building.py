"""Building images: a recipe or a Dockerfile, executed step by step in sandboxes of ours.

No builder runs on the host, and nothing of a build does: not the steps, not the files that it is given, not the packing
of the result (docs/decisions/0011). What the image becomes is unpacked as a stranger's layer is.
To add a key of a recipe: `model/build.py`, `_recipe`; an instruction: `dockerfile.py`, `_Stage.step`.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import re
import secrets
import shlex
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from cove.core.access import require
from cove.core.dockerfile import (
    LEFT_OUT,
    Instruction,
    Stage,
    arg_values,
    expand,
    find_stage,
    needed,
    pairs,
    parse_dockerfile,
    words,
)
from cove.core.following import Voice, following
from cove.core.images import Images
from cove.core.workbench import CONTEXT, SCRATCH, Copy, Step, Tools, Workbench, workbench
from cove.engine.images.archives import pick_file
from cove.engine.images.settings import ImageSettings
from cove.engine.images.unpack import LayerFile
from cove.model.access import Principal, Scope
from cove.model.build import BuildOrder, Recipe
from cove.model.errors import BadRequest, CoveError
from cove.model.image import ImageConfig, ImageEvent, ImageInfo, ImageOrigin, ImageStage
from cove.model.reference import INTERIM, parse_local

_MAX_RECIPE: Final = 64 * 1024
_MAX_DOTS: Final = 8
_SHELL: Final = ("/bin/sh", "-c")
_OWN_FOLDER: Final = ".cove-build"
"""In an uploaded context: where a client puts a recipe or Dockerfile that lies outside of it."""

_OWNER: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}(:[A-Za-z0-9_.-]{1,64})?")
_MODE: Final = re.compile(r"[0-7]{3,4}")
_NEEDED: Final = frozenset({Scope.READ, Scope.CREATE, Scope.EXEC, Scope.FILES, Scope.DESTROY})


class Building:
    """Makes images out of images. `slots`: so many results are unpacked at a time, the others wait."""

    def __init__(self, images: Images, tools: Tools, settings: ImageSettings, slots: asyncio.Semaphore) -> None:
        self._images = images
        self._tools = tools
        self._settings = settings
        self._slots = slots

    async def build(self, who: Principal, order: BuildOrder, context: Path | None = None) -> AsyncGenerator[ImageEvent]:
        """Build `localhost/NAME`; output comes as events of stage `run`, the last event is `done`.

        `context` is a tar file (plain or gzip) of what the steps may use; without one, `order` has a recipe. Closing
        ends it without a trace. Raises: Forbidden, BadRequest (a step that fails too), TooLarge, Unsupported, Conflict,
        NotFound (image), RegistryError, CapacityExceeded, SandboxError, EngineFailure.
        """
        require(who, Scope.CREATE)
        require(who, Scope.EXEC)
        parse_local(order.name)
        # Its sandboxes are the build's own: the key need not be one that may do the same to others.
        builder = replace(who, scopes=who.scopes | _NEEDED)

        async def work(voice: Voice) -> ImageInfo:
            try:
                async with asyncio.timeout(order.timeout_s), self._images.workspace() as folder:
                    await voice.say(ImageEvent(stage=ImageStage.RESOLVE))
                    job = _Job(
                        images=self._images,
                        tools=self._tools,
                        settings=self._settings,
                        slots=self._slots,
                        who=builder,
                        order=order,
                        context=context,
                        folder=folder,
                        voice=voice,
                    )
                    return await job.build()
            except TimeoutError as error:
                raise BadRequest(f"the build was not done within {order.timeout_s:g} s", field="timeout_s") from error

        async for event in following(work):
            yield event


class _Run(Struct):
    """How the image that is being built runs, and what steps see. Changes from step to step."""

    config: ImageConfig
    shell: tuple[str, ...] = _SHELL
    args: dict[str, str] = field(default_factory=dict[str, str])
    has_command: bool = False

    @property
    def env(self) -> dict[str, str]:
        """Variables of a step: what the image sets wins over an ARG."""
        return {**self.args, **self.config.env}


class _Job:
    """One build."""

    def __init__(  # noqa: PLR0913 - what one build is about
        self,
        *,
        images: Images,
        tools: Tools,
        settings: ImageSettings,
        slots: asyncio.Semaphore,
        who: Principal,
        order: BuildOrder,
        context: Path | None,
        folder: Path,
        voice: Voice,
    ) -> None:
        self.images = images
        self.tools = tools
        self.settings = settings
        self._slots = slots
        self.who = who
        self.order = order
        self.context = context
        self.folder = folder
        self.voice = voice
        self._files = 0

    async def build(self) -> ImageInfo:
        """Do it. Raises: CoveError."""
        if self.order.recipe is not None:
            return await self._recipe(self.order.recipe)
        data = await self._build_file()
        if self.order.file.endswith((".toml", ".json")):
            return await self._recipe(_read_recipe(data, self.order.file))
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise BadRequest("the Dockerfile is not valid UTF-8", field="file") from error
        return await self._dockerfile(text)

    async def _build_file(self) -> bytes:
        if self.context is None:
            raise BadRequest("a build needs a recipe, or files with one", field="file")
        folder = self.folder / "picked"
        await asyncio.to_thread(folder.mkdir)
        return await pick_file(
            self.context, folder, self.order.file, self.settings.limits, timeout_s=self.order.timeout_s
        )

    async def bench(self, stack: AsyncExitStack, image: str, *, needs_context: bool) -> Workbench:
        """A sandbox of `image`, with the uploaded files if there are any."""
        bench = await stack.enter_async_context(workbench(self.tools, self.who, self.order, image, self.voice))
        if needs_context and self.context is not None:
            await bench.put(self.context, CONTEXT)
            argv = ("/bin/rm", "-rf", f"{CONTEXT}/{_OWN_FOLDER}")
            await bench.run(Step(argv=argv, shown="preparing the files", env={}, cwd="/"))
        return bench

    async def base(self, name: str) -> tuple[str, ImageConfig]:
        """The image to start from, pulled if it is not here, and how it runs. Raises: as `Images.ensure`."""
        found = await self.images.ensure(self.who, name)
        if found.note:
            await self.say(found.note)
        image = found.image
        config = ImageConfig(
            env=image.env,
            workdir=image.workdir,
            user=image.user,
            entrypoint=image.entrypoint,
            command=image.command,
            labels=self.images.get(self.who, image.name).config.labels,
        )
        return image.name, config

    async def say(self, text: str) -> None:
        """Say a line of our own."""
        await self.voice.say(ImageEvent(stage=ImageStage.RUN, text=text))

    async def save(self, bench: Workbench) -> Path:
        """The file system of a sandbox, as a tar file."""
        path = self.path()
        await bench.save(path, most_bytes=self.settings.limits.most_bytes)
        return path

    async def adopt(self, name: str, layer: Path, config: ImageConfig) -> ImageInfo:
        """Keep a saved file system as an image."""
        total = await asyncio.to_thread(_size, layer)
        async with self._slots:
            image = await self.images.adopt_layers(
                self.who,
                name,
                [LayerFile(path=layer)],
                config=config,
                origin=ImageOrigin.BUILT,
                progress=lambda done: self.voice.mark(ImageStage.UNPACK, done, total),
            )
        await asyncio.to_thread(layer.unlink)
        return image

    def path(self) -> Path:
        """A new name in the build's folder."""
        self._files += 1
        return self.folder / f"{self._files}.tar"

    async def _recipe(self, recipe: Recipe) -> ImageInfo:
        image, config = await self.base(recipe.base)
        config = _of_recipe(recipe, config)
        steps = list(_recipe_steps(recipe, config.env, has_context=self.context is not None))
        async with AsyncExitStack() as stack:
            bench = await self.bench(stack, image, needs_context=True)
            await bench.make_folder(CONTEXT, "preparing the files")
            for path, text in recipe.files.items():
                await bench.write(path, text)
            for number, step in enumerate(steps, 1):
                await self.say(f"[{number}/{len(steps)}] {step.shown}")
                await bench.run(step)
            if recipe.workdir is not None:
                await bench.make_folder(config.workdir, "making workdir")
            layer = await self.save(bench)
        return await self.adopt(self.order.name, layer, config)

    async def _dockerfile(self, text: str) -> ImageInfo:
        stages, outer = parse_dockerfile(text, self.order.args)
        wanted = needed(stages, self.order.target)
        plan = _Plan(self, stages, wanted, outer)
        try:
            async with AsyncExitStack() as stack:
                config = await plan.run(stack)
                layer = await self.save(plan.benches[wanted[-1].number])
            return await self.adopt(self.order.name, layer, config)
        finally:
            for name in plan.interim:
                with contextlib.suppress(CoveError):  # not there yet, or somebody runs it: the next start forgets it
                    await self.images.remove(self.who, name)


class _Plan:
    """The stages of a Dockerfile, in order. A stage's sandbox stays until the build is over: later ones may copy."""

    def __init__(self, job: _Job, stages: tuple[Stage, ...], wanted: tuple[Stage, ...], outer: dict[str, str]) -> None:
        self.job = job
        self.stages = stages
        self.outer = outer
        self.benches: dict[int, Workbench] = {}
        self.interim: list[str] = []
        self._wanted = wanted
        self._configs: dict[int, ImageConfig] = {}
        self._done = 0
        self._steps = sum(len(stage.steps) + 1 for stage in wanted)

    async def run(self, stack: AsyncExitStack) -> ImageConfig:
        """Run every stage; returns how the last one's image runs. Raises: CoveError."""
        for stage in self._wanted:
            await self.announce(stage.start)
            image, config = await self._base(stage)
            needs_context = any(step.word in {"COPY", "ADD"} and "from" not in step.flags for step in stage.steps)
            bench = await self.job.bench(stack, image, needs_context=needs_context)
            self.benches[stage.number] = bench
            one = _Stage(self, stage, bench, _Run(config))
            for step in stage.steps:
                await self.announce(step)
                await one.step(step)
            self._configs[stage.number] = one.run.config
        return self._configs[self._wanted[-1].number]

    async def announce(self, instruction: Instruction) -> None:
        """Say which step comes."""
        self._done += 1
        await self.job.say(f"[{self._done}/{self._steps}] {instruction.shown}")

    async def _base(self, stage: Stage) -> tuple[str, ImageConfig]:
        if isinstance(stage.base, str):
            return await self.job.base(stage.base)
        # What the earlier stage has by now, as an image of its own for the time of the build.
        name = f"{INTERIM}{secrets.token_hex(8)}:{stage.base}"
        config = self._configs[stage.base]
        layer = await self.job.save(self.benches[stage.base])
        self.interim.append(name)
        await self.job.adopt(name, layer, config)
        return name, config

    async def copied(self, instruction: Instruction, sources: tuple[str, ...], number: int) -> Path:
        """Files of an earlier stage, or of an image, as a tar file. Raises: BadRequest, NotFound (image)."""
        name = instruction.flags["from"]
        stage = find_stage(self.stages[:number], name)
        path = self.job.path()
        most = self.job.settings.limits.most_bytes
        if stage is not None:
            await self.benches[stage.number].give(sources, path, _shown(instruction), most_bytes=most)
            return path
        image, _ = await self.job.base(name)
        async with AsyncExitStack() as stack:
            bench = await self.job.bench(stack, image, needs_context=False)
            await bench.give(sources, path, _shown(instruction), most_bytes=most)
        return path


class _Stage:
    """One stage at work."""

    def __init__(self, plan: _Plan, stage: Stage, bench: Workbench, run: _Run) -> None:
        self._plan = plan
        self._stage = stage
        self._bench = bench
        self.run = run

    async def step(self, one: Instruction) -> None:
        """Do what an instruction says. Raises: CoveError."""
        config = self.run.config
        match one.word:
            case "RUN":
                argv = one.argv or (*self.run.shell, one.text if one.body is None else one.body)
                step = Step(argv=argv, shown=_shown(one), env=self.run.env, cwd=config.workdir, user=config.user)
                await self._bench.run(step)
            case "COPY" | "ADD":
                await self._copy(one)
            case "WORKDIR":
                path = posixpath.normpath(posixpath.join(config.workdir, self._expanded(one)))
                await self._bench.make_folder(path, _shown(one))
                self.run.config = replace(config, workdir=path)
            case word if word in LEFT_OUT:
                await self._plan.job.say(f"line {one.line}: {one.word} means nothing in a sandbox, and is left out")
            case _:
                self._note(one)

    def _note(self, one: Instruction) -> None:
        """What only says how the image runs."""
        config, variables = self.run.config, self.run.env
        match one.word:
            case "ENV":
                self.run.config = replace(config, env={**config.env, **pairs(one, variables)})
            case "LABEL":
                self.run.config = replace(config, labels={**config.labels, **pairs(one, variables)})
            case "ARG":
                values = arg_values(one, self._plan.job.order.args, variables, self._plan.outer)
                self.run.args = {**self.run.args, **values}
            case "USER":
                self.run.config = replace(config, user=self._expanded(one))
            case "SHELL":
                if not one.argv:
                    raise one.bad('write a list, such as ["/bin/bash", "-c"]')
                self.run.shell = one.argv
            case "CMD":
                self.run.config = replace(config, command=self._argv(one))
                self.run.has_command = True
            case _:
                command = config.command if self.run.has_command else ()
                self.run.config = replace(config, entrypoint=self._argv(one), command=command)

    def _argv(self, one: Instruction) -> tuple[str, ...]:
        argv = one.argv
        return (*self.run.shell, one.text) if argv is None else argv

    def _expanded(self, one: Instruction) -> str:
        return expand(one, one.text, self.run.env)

    async def _copy(self, one: Instruction) -> None:
        found = list(one.argv or words(one, self.run.env))
        if len(found) < 2:  # noqa: PLR2004 - something, to somewhere
            raise one.bad("it needs something to copy, and where to")
        *sources, target = found
        if any(re.match(r"[a-z+]+://|git@", source) for source in sources):
            raise one.unsupported("a build has no network: download it beforehand, and COPY it")
        place = posixpath.join(self.run.config.workdir, target)
        if target.endswith(("/", "/.")) or target == ".":
            place = posixpath.normpath(place).rstrip("/") + "/"
        copy = Copy(
            sources=tuple(map(_below, sources)),
            target=place,
            shown=_shown(one),
            owner=self._flag(one, "chown", _OWNER) or "0:0",
            mode=self._flag(one, "chmod", _MODE),
            unpack=one.word == "ADD",
        )
        if "from" in one.flags:
            archive = await self._plan.copied(one, copy.sources, self._stage.number)
            await self._bench.put(archive, f"{SCRATCH}/from")
            await self._bench.copy(replace(copy, origin=f"{SCRATCH}/from"))
            argv = ("/bin/rm", "-rf", SCRATCH)
            await self._bench.run(Step(argv=argv, shown=_shown(one), env={}, cwd="/"))
            await asyncio.to_thread(archive.unlink)
            return
        if self._plan.job.context is None:
            raise one.bad("no files were uploaded with this build")
        await self._bench.copy(copy)

    def _flag(self, one: Instruction, name: str, form: re.Pattern[str]) -> str:
        value = expand(one, one.flags.get(name, ""), self.run.env)
        if value and not form.fullmatch(value):
            raise one.bad(f'--{name}: "{value[:64]}" is not understood')
        return value


def _read_recipe(data: bytes, name: str) -> Recipe:
    """Raises: BadRequest."""
    if len(data) > _MAX_RECIPE:
        raise BadRequest(f"{name[:200]} is larger than {_MAX_RECIPE // 1024} KiB", field="file")
    # TOML's dotted keys cost the square of their parts to read.
    if any(line.split(b"=", 1)[0].count(b".") > _MAX_DOTS for line in data.splitlines()):
        raise BadRequest(f"{name[:200]} has a key of more than {_MAX_DOTS} parts", field="file")
    decode = msgspec.toml.decode if name.endswith(".toml") else msgspec.json.decode
    try:
        return decode(data, type=Recipe)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"{name[:200]} is no recipe: {str(error)[:300]}", field="file") from error


def _of_recipe(recipe: Recipe, base: ImageConfig) -> ImageConfig:
    """How the image runs, after its base and the recipe."""
    entrypoint = base.entrypoint if recipe.entrypoint is None else recipe.entrypoint
    command = base.command if recipe.command is None and recipe.entrypoint is None else recipe.command or ()
    return ImageConfig(
        env={**base.env, **recipe.env},
        workdir=base.workdir if recipe.workdir is None else posixpath.normpath(posixpath.join("/", recipe.workdir)),
        user=base.user if recipe.user is None else recipe.user,
        entrypoint=entrypoint,
        command=command,
        labels={**base.labels, **recipe.labels},
    )


def _recipe_steps(recipe: Recipe, env: dict[str, str], *, has_context: bool) -> list[Step]:
    """The commands of a recipe, in order; each is run by root in /context."""
    found: list[tuple[tuple[str, ...], str]] = []
    for what, names in (("packages", recipe.packages), ("pip", recipe.pip), ("npm", recipe.npm)):
        for name in names:
            if name.startswith("-") or not name.isprintable():
                raise BadRequest(f"{what}: {name[:64]!r} is no name of a package", field=what)
    if recipe.packages:
        apt = "apt-get -o APT::Sandbox::User=root"
        # Packages that were uploaded (./NAME.deb) need no lists.
        update = "" if all(name.startswith("./") for name in recipe.packages) else f"{apt} update && "
        install = f"{apt} install -y --no-install-recommends {shlex.join(recipe.packages)}"
        script = f"export DEBIAN_FRONTEND=noninteractive; {update}{install} && rm -rf /var/lib/apt/lists/*"
        found.append(((*_SHELL, script), f"apt-get install {shlex.join(recipe.packages)}"))
    if recipe.pip:
        options = ("--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore")
        beside = ("--find-links", CONTEXT) if has_context else ()
        argv = ("pip", "install", *options, *beside, *recipe.pip)
        found.append((argv, f"pip install {shlex.join(recipe.pip)}"))
    if recipe.npm:
        argv = ("npm", "install", "--global", "--no-audit", "--no-fund", *recipe.npm)
        found.append((argv, f"npm install {shlex.join(recipe.npm)}"))
    found += [((*_SHELL, command), " ".join(command.split())[:200]) for command in recipe.commands]
    return [Step(argv=argv, shown=shown, env=env, cwd=CONTEXT) for argv, shown in found]


def _size(path: Path) -> int:
    return path.stat().st_size


def _below(source: str) -> str:
    """A pattern below the context, which no `..` leaves; safe as an argument."""
    return "./" + posixpath.normpath("/" + source).lstrip("/")


def _shown(instruction: Instruction) -> str:
    return f"line {instruction.line} of the Dockerfile ({instruction.shown})"
