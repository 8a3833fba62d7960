import { randomBytes } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { chmod } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { fromUtf8 } from '../../../base/bytes.ts';
import { type CallOptions, checkCancelled } from '../../../base/call.ts';
import type { Digest } from '../../../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../../../base/errors.ts';
import { canonicalJson } from '../../../base/json.ts';
import { collect } from '../../../base/streams.ts';
import type { Assets, TreeEntry } from '../../../capabilities/assets.ts';
import type { RunRequest, RunResult, Runtime, RuntimeStatus, SandboxPolicy } from '../../../capabilities/vm.ts';
import { decodeMachineFile, MACHINE_FILE_CHARACTERS_MAX, type MachineFile } from '../../../wire/machine.ts';
import { type SnapshotOrigin, snapshotKey } from '../../../wire/machine-snapshot.ts';
import { comparePaths, encodeTree, type TreeSource } from '../../../wire/tree.ts';
import { AddedRuntime } from '../added/added-runtime.ts';
import type { ProvisionOptions } from '../added/provision.ts';
import type { ExecutionLimits } from '../limits.ts';
import { OnceEach } from '../once-each.ts';
import { logTo } from '../output.ts';
import type { AheadBox, Box, BoxLimits, BoxSpec } from '../process/box.ts';
import type { ProcessSandbox } from '../process/sandbox.ts';
import type { Standby } from '../process/standby.ts';
import type { Trees } from '../process/trees.ts';
import { encodeInput, refuseFuel } from '../request.ts';
import { type AcceleratorStatus, KVM, probeAccelerator } from './accelerator.ts';
import { boot, SCRATCH } from './boot.ts';
import {
  type Accelerator,
  arrangementOf,
  EMULATOR_BYTES,
  EMULATOR_PATH,
  EMULATOR_PIDS,
  type Emulator,
  findEmulator,
  guestArguments,
  processorOf,
  QEMU,
} from './emulator.ts';
import { performGuest } from './perform.ts';
import { type HeldSnapshot, Snapshots } from './snapshots.ts';

type Files = Pick<Assets, 'tree' | 'readFile'>;

const MiB = 2 ** 20;
const SECTOR = 512;
/** Shell script: goes on where the machine was kept. Descriptors: 6 what the guest logs, 7 what was kept, 8 what the guest prints. */
const GO_ON = `${SCRATCH}exec "$@" 6>&2 7</snapshot/state 8>&1`;
const NO_EMULATOR =
  'qemu-system-x86_64 is missing. Add it to this node: `hypermesh runtime add vm`; or install it, for example with `apt-get install --no-install-recommends qemu-system-x86`.';

/** Runs virtual machines: each an emulator in a box of its own, from a snapshot of the moment when its guest was ready. */
export class MachineRuntime implements Runtime {
  readonly kind = 'vm';
  readonly #assets: Files;
  readonly #sandbox: ProcessSandbox;
  readonly #trees: Trees;
  readonly #standby: Standby;
  readonly #limits: ExecutionLimits;
  readonly #directory: string;
  readonly #added: AddedRuntime;
  readonly #making = new OnceEach();
  #snapshots: Promise<Snapshots> | undefined;
  #accelerator: Promise<AcceleratorStatus> | undefined;

  /** `directory`: inside the one of the sandbox, ours alone; made when missing. `images`: too, where emulators are added. */
  constructor(
    lent: {
      readonly assets: Files;
      readonly sandbox: ProcessSandbox;
      readonly trees: Trees;
      readonly standby: Standby;
    },
    options: { readonly limits: ExecutionLimits; readonly directory: string; readonly images: string },
  ) {
    this.#assets = lent.assets;
    this.#sandbox = lent.sandbox;
    this.#trees = lent.trees;
    this.#standby = lent.standby;
    this.#limits = options.limits;
    this.#directory = options.directory;
    this.#added = new AddedRuntime(QEMU, options.images, () => {
      this.#accelerator = undefined;
    });
  }

  async probe(): Promise<RuntimeStatus> {
    const unavailable = (reason: string): RuntimeStatus => ({ kind: 'vm', available: false, version: null, reason });
    try {
      const emulator = await findEmulator(await this.#added.installed());
      if (emulator === null) return unavailable(NO_EMULATOR);
      const sandbox = await this.#sandbox.probe();
      if (!sandbox.available) return unavailable([sandbox.reason, sandbox.remedy].filter(Boolean).join(' '));
      const { accelerator, reason } = await this.#accelerated(emulator);
      if (accelerator === null) return unavailable(reason ?? 'A test machine did not run.');
      return {
        kind: 'vm',
        available: true,
        version:
          accelerator === 'kvm'
            ? 'x86_64 machines on the processor itself (kvm)'
            : `x86_64 machines, emulated (tcg), several times slower than on the processor itself: ${reason}`,
        reason: null,
        enforces: { ...sandbox.enforces, ...enforced(accelerator) },
      };
    } catch (error) {
      return unavailable(error instanceof Error ? error.message : String(error));
    }
  }

  async run(request: RunRequest, options: CallOptions = {}): Promise<RunResult> {
    return this.#added.use(async (image) => this.#run(await findEmulator(image), request, options));
  }

  /** Adds an emulator to this node. */
  async add(options: ProvisionOptions = {}): Promise<RuntimeStatus> {
    await this.#added.add(options);
    return this.probe();
  }

  export(options: CallOptions = {}): AsyncIterable<Uint8Array> {
    return this.#added.export(
      EMULATOR_PATH,
      () =>
        new HyperMeshError('runtime-unavailable', 'No emulator was added to this node.', {
          hint: 'Add one with `hypermesh runtime add vm`.',
        }),
      options,
    );
  }

  async remove(): Promise<boolean> {
    return this.#added.remove(() => this.#standby.clear());
  }

  async #run(emulator: Emulator | null, request: RunRequest, options: CallOptions): Promise<RunResult> {
    const { policy } = request;
    const input = encodeInput(request.input, this.#limits);
    refuseFuel(policy, 'virtual machine');
    if (emulator === null)
      throw new HyperMeshError('runtime-unavailable', 'This computer has no qemu.', { hint: NO_EMULATOR });
    const tree = await this.#assets.tree(request.layer, options);
    const machine = await this.#described(request, tree, options);
    const { accelerator, reason } = await this.#accelerated(emulator);
    if (accelerator === null) throw new HyperMeshError('runtime-unavailable', reason ?? 'A test machine did not run.');

    const { name: processor } = await processorOf();
    const origin = originOf(request, machine, { accelerator, emulator: emulator.digest, processor });
    const limits = boxLimits(policy, origin);
    const key = canonicalJson([snapshotKey(origin), limits]);
    using held = new DisposableStack();
    const box =
      (await this.#waiting(key, options)) ??
      (await this.#sandbox.start(await this.#spec(origin, emulator, limits, tree, held, options)));
    const result = await performGuest(box, {
      start: {
        nowMs: Date.now(),
        randomness: randomBytes(64),
        environment: policy.environment,
        args: request.args,
        program: machine.program,
      },
      input,
      memoryBytes: origin.memoryMiB * MiB,
      enforcedBy: enforced(accelerator),
      log: logTo(options.onProgress),
      signal: options.signal,
    });
    if (result.termination === 'exit')
      this.#standby.prepare(key, limits.memoryBytes, () => this.#startAhead(origin, emulator, limits, tree));
    return result;
  }

  /** A machine that went on from exactly this snapshot ahead of the run, and waits to be told what to start. */
  async #waiting(key: string, options: CallOptions): Promise<Box | null> {
    const waiting = this.#standby.take(key);
    if (waiting === null) return null;
    if (options.signal?.aborted === true) waiting.box.kill();
    checkCancelled(options.signal);
    return waiting.box.begin();
  }

  async #startAhead(
    origin: SnapshotOrigin,
    emulator: Emulator,
    limits: BoxLimits,
    tree: readonly TreeEntry[],
  ): Promise<{ box: AheadBox; held: Disposable }> {
    using held = new DisposableStack();
    const box = await this.#sandbox.startAhead(await this.#spec(origin, emulator, limits, tree, held, {}));
    return { box, held: held.move() };
  }

  /** A machine that goes on from its snapshot; what it is shown is added to `held`. */
  async #spec(
    origin: SnapshotOrigin,
    emulator: Emulator,
    limits: BoxLimits,
    tree: readonly TreeEntry[],
    held: DisposableStack,
    options: CallOptions,
  ): Promise<BoxSpec> {
    const { path: folder } = held.use(await this.#trees.hold(origin.layer, options));
    const snapshot = held.use(await this.#snapshot(origin, emulator, folder, tree, options));
    checkCancelled(options.signal);
    const { khz } = await processorOf();
    return {
      command: [
        ...['/bin/sh', '-c', GO_ON, 'sh', String(origin.scratchBytes), emulator.path],
        // Standard input is closed when all of it was given; only this kind of channel lets the guest read it to the end.
        ...['-chardev', 'stdio,id=input,signal=off', '-chardev', 'null,id=console'],
        ...['control,fd=3', 'log,fd=6', 'output,fd=8'].flatMap((channel) => ['-chardev', `socket,id=${channel}`]),
        ...guestArguments(origin, khz),
        ...['-incoming', 'fd:7'],
      ],
      root: emulator.root,
      mounts: [
        { source: folder, at: '/package' },
        { source: snapshot.path, at: '/snapshot' },
      ],
      environment: { PATH: '/usr/bin:/bin' },
      ...(origin.accelerator === 'kvm' ? { devices: [KVM] } : {}),
      limits,
    };
  }

  /** What was found out stays: the computer does not change while the node runs. */
  #accelerated(emulator: Emulator): Promise<AcceleratorStatus> {
    this.#accelerator ??= this.#opened()
      .then(() => probeAccelerator(this.#sandbox, emulator, join(this.#directory, 'test')))
      .then((status) => {
        if (status.accelerator === null) this.#accelerator = undefined;
        return status;
      })
      .catch((error: unknown) => {
        this.#accelerator = undefined;
        throw error;
      });
    return this.#accelerator;
  }

  async #described(
    { layer, entry }: RunRequest,
    tree: readonly TreeEntry[],
    options: CallOptions,
  ): Promise<MachineFile> {
    const found = tree.find(({ path, kind }) => path === entry && kind === 'file');
    if (found === undefined)
      throw new HyperMeshError('entry-missing', `The package has no file "${entry}" to run.`, {
        hint: 'Set `entry` in catalog.yaml to the description of the machine, such as machine.json.',
      });
    // A character has at most four bytes; longer than that is refused like what is too long when decoded.
    const isShort = found.size <= 4 * MACHINE_FILE_CHARACTERS_MAX;
    const machine = decodeMachineFile(
      isShort ? fromUtf8(await collect(this.#assets.readFile(layer, entry, options), found.size)) : '',
    );
    for (const name of ['kernel', 'initrd', 'disk'] as const) {
      const file = tree.find(({ path, kind }) => path === machine[name] && kind === 'file');
      if (machine[name] !== undefined && file === undefined)
        throw new HyperMeshError('program-invalid', `The package has no file "${machine[name]}", its ${name}.`, {
          hint: 'Build it into the folder of the package before it is published.',
        });
      if (name === 'disk' && file !== undefined && (file.size === 0 || file.size % SECTOR !== 0))
        throw new HyperMeshError('program-invalid', `The disk has ${file.size} bytes; expected whole sectors of 512.`);
    }
    return machine;
  }

  /** The snapshot, made now if there is none. */
  async #snapshot(
    origin: SnapshotOrigin,
    emulator: Emulator,
    folder: string,
    tree: readonly TreeEntry[],
    options: CallOptions,
  ): Promise<HeldSnapshot> {
    const key = snapshotKey(origin);
    const snapshots = await this.#opened();
    for (;;) {
      checkCancelled(options.signal);
      const there = await snapshots.hold(origin);
      if (there !== null) return there;
      const make = () => this.#make(snapshots, origin, emulator, folder, tree, options);
      await this.#making.make(key, make, options.signal);
    }
  }

  async #make(
    snapshots: Snapshots,
    origin: SnapshotOrigin,
    emulator: Emulator,
    tree: string,
    entries: readonly TreeEntry[],
    options: CallOptions,
  ): Promise<void> {
    options.onProgress?.({ step: 'boot', note: `the machine starts for the first time with ${origin.memoryMiB} MiB` });
    await this.#forgetDeleted(snapshots);
    await snapshots.add(origin, async (folder) => {
      await this.#writeFiles(join(folder, 'files'), origin, entries, options);
      return boot(this.#sandbox, origin, { emulator, tree, folder, signal: options.signal });
    });
  }

  /** The disk that shows the guest its package, without what the machine is made of, and what it depends on. */
  async #writeFiles(
    file: string,
    origin: SnapshotOrigin,
    entries: readonly TreeEntry[],
    options: CallOptions,
  ): Promise<void> {
    const parts = new Set([origin.kernel, origin.initrd, origin.disk]);
    const sources = new Map<string, TreeSource>();
    const add = (layer: Digest, at: string, list: readonly TreeEntry[]) => {
      for (const entry of list) {
        const path = `${at.slice(1)}/${entry.path}`;
        addFolders(sources, path);
        const content = entry.kind === 'file' ? { content: this.#assets.readFile(layer, entry.path, options) } : {};
        sources.set(path, { entry: { ...entry, path }, ...content });
      }
    };
    add(
      origin.layer,
      '/package',
      entries.filter(({ path }) => !parts.has(path)),
    );
    for (const { layer, at } of origin.mounts) add(layer, at, await this.#assets.tree(layer, options));
    const bytes = sources.values().reduce((sum, { entry }) => sum + entry.size, 0);
    if (sources.size > this.#limits.filesMax || bytes > this.#limits.servedBytesMax)
      throw new HyperMeshError(
        'limit-exceeded',
        `The package and its dependencies have ${sources.size} files of ${bytes} bytes; a machine is shown at most ${this.#limits.filesMax} files of ${this.#limits.servedBytesMax} bytes.`,
      );
    const sorted = [...sources.values()].sort((one, other) => comparePaths(one.entry.path, other.entry.path));
    try {
      await pipeline(Readable.from(encodeTree(sorted)), createWriteStream(file, { flags: 'wx' }));
      await chmod(file, 0o644);
    } catch (error) {
      checkCancelled(options.signal);
      throw isCoded(error) ? error : storageError(error, 'preparing the files of a machine');
    }
  }

  /** Snapshots go with their packages. */
  async #forgetDeleted(snapshots: Snapshots): Promise<void> {
    for (const layer of snapshots.layers()) {
      const isGone = await this.#assets.tree(layer).then(
        () => false,
        (error: unknown) => isCoded(error, 'blob-not-found'),
      );
      if (isGone) await snapshots.forget(layer);
    }
  }

  #opened(): Promise<Snapshots> {
    this.#snapshots ??= Snapshots.open({ directory: this.#directory })
      .then(async (snapshots) => {
        await this.#forgetDeleted(snapshots);
        return snapshots;
      })
      .catch((error: unknown) => {
        this.#snapshots = undefined;
        throw error;
      });
    return this.#snapshots;
  }
}

/** A tree has an entry for each folder. */
function addFolders(sources: Map<string, TreeSource>, file: string): void {
  for (let path = dirname(file); path !== '.' && !sources.has(path); path = dirname(path))
    sources.set(path, { entry: { path, kind: 'directory', size: 0, executable: false } });
}

function originOf(
  { layer, policy }: RunRequest,
  machine: MachineFile,
  computer: Pick<SnapshotOrigin, 'accelerator' | 'emulator' | 'processor'>,
): SnapshotOrigin {
  const origin = {
    layer,
    kernel: machine.kernel,
    initrd: machine.initrd ?? null,
    disk: machine.disk ?? null,
    commandLine: machine.commandLine,
    mounts: policy.mounts.map(({ layer: mounted, at }) => ({ layer: mounted, at })),
    memoryMiB: Math.max(1, Math.floor(policy.memoryBytes / MiB)),
    processors: Math.ceil(policy.cpuCores),
    scratchBytes: policy.tmpBytes - (policy.tmpBytes % SECTOR),
    ...computer,
  };
  return { ...origin, arrangement: arrangementOf(origin) };
}

function boxLimits({ cpuCores, wallMs, outputBytes, tmpBytes }: SandboxPolicy, origin: SnapshotOrigin): BoxLimits {
  return {
    memoryBytes: origin.memoryMiB * MiB + EMULATOR_BYTES + tmpBytes,
    ...{ cpuCores, wallMs, outputBytes, tmpBytes },
    pids: EMULATOR_PIDS + origin.processors,
    fileBytes: Math.max(tmpBytes, 1),
  };
}

/** What holds a limit for what is in the guest; the box of the emulator holds the rest, and these too if the guest breaks out of it. */
function enforced(accelerator: Accelerator): Readonly<Record<string, string>> {
  return {
    isolation: `a virtual machine (qemu, ${accelerator}) in a box of its own`,
    memory: 'the memory of the machine',
    files: 'the machine has only the disks of its package, read-only',
    tmp: 'a disk of that size, thrown away at the end',
    network: 'the machine has no network device',
    output: 'counted by the node',
    wall: 'SIGKILL to the emulator',
  };
}
