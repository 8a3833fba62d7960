import { existsSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { utf8 } from '../../../base/bytes.ts';
import { type Digest, digestOf } from '../../../base/digest.ts';
import { canonicalJson } from '../../../base/json.ts';
import type { SnapshotOrigin } from '../../../wire/machine-snapshot.ts';
import type { AddedImage, Recipe } from '../added/provision.ts';
import { digestOfFile } from './snapshots.ts';

export type Accelerator = SnapshotOrigin['accelerator'];

/** The program that makes virtual machines: where it is in a box, and by what its snapshots are known. */
export interface Emulator {
  /** What the box gets as its root; `host`: that of this computer. */
  readonly root: string;
  readonly path: string;
  readonly digest: Digest;
}

export const EMULATOR_PATH = '/usr/bin/qemu-system-x86_64';
const PATHS = [EMULATOR_PATH, '/usr/local/bin/qemu-system-x86_64'];
/** What `hypermesh runtime add vm` adds: qemu, and what the scripts around it need. */
export const QEMU: Recipe = {
  runtime: 'vm',
  title: 'qemu',
  packages: ['qemu-system-x86', 'busybox-static'],
  suites: [],
  kept: ['lib', 'lib64', 'usr/lib', 'usr/bin/qemu-system-x86_64', 'usr/share/qemu', 'usr/share/seabios', 'bin/busybox'],
  links: Object.fromEntries(['sh', 'cat', 'dd', 'mv', 'sleep'].map((name) => [`bin/${name}`, 'busybox'])),
};
/** Code that was translated, where the processor does not run it itself. */
const TRANSLATED_MIB = 64;
/** All that can be emulated but what is slow then: instructions that go through memory byte by byte, page tables of five levels. */
const TRANSLATED_PROCESSOR = 'max,-erms,-fsrm,-la57';
/** What the emulator may take beside the memory of the machine, and what it takes at least. */
export const EMULATOR_BYTES = 192 * 2 ** 20;
export const EMULATOR_BYTES_LEAST = 48 * 2 ** 20;
/** Its own threads beside the processors: for files, mostly. */
export const EMULATOR_PIDS = 80;

const digests = new Map<string, Promise<Digest>>();

/** The one that was added, else that of this computer, whose `/usr` a box sees; null when there is none. */
export async function findEmulator(image: AddedImage | null): Promise<Emulator | null> {
  if (image !== null) return { root: image.root, path: EMULATOR_PATH, digest: image.digest };
  const path = PATHS.find(existsSync);
  if (path === undefined) return null;
  const { mtimeMs, size } = await stat(path);
  const key = `${path} ${mtimeMs} ${size}`;
  let digest = digests.get(key);
  if (digest === undefined) {
    digest = digestOfFile(path);
    digests.set(key, digest);
    digest.catch(() => digests.delete(key));
  }
  return { root: 'host', path, digest: await digest };
}

/** What every machine is started with; devices and their order are part of a snapshot. */
export function machineArguments(accelerator: Accelerator, memoryMiB: number, processors: number): string[] {
  return [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...['-machine', 'microvm,x-option-roms=off,isa-serial=on,rtc=off'],
    ...(accelerator === 'kvm'
      ? ['-accel', 'kvm', '-cpu', 'host']
      : ['-accel', `tcg,thread=multi,tb-size=${TRANSLATED_MIB}`, '-cpu', TRANSLATED_PROCESSOR]),
    ...['-m', String(memoryMiB), '-smp', String(processors)],
  ];
}

type Arranged = Omit<SnapshotOrigin, 'arrangement'>;

/** By what snapshots of a machine are known that is made in another way by another version of this program. */
export function arrangementOf(origin: Arranged): Digest {
  return digestOf(utf8(canonicalJson(guestArguments(origin, null))));
}

/** Kernel and devices as the guest contract has them; `from`: the folder of the package and that of the snapshot in the box. */
export function guestArguments(origin: Arranged, khz: number | null): string[] {
  const inPackage = (file: string) => `/package/${file}`;
  // Without it a kernel measures its clock against another one, which can take forever on a busy computer.
  const clock = khz === null ? '' : ` tsc_early_khz=${khz}`;
  const args = [
    ...machineArguments(origin.accelerator, origin.memoryMiB, origin.processors),
    ...['-kernel', inPackage(origin.kernel), '-append', `${origin.commandLine}${clock}`.trim()],
    ...(origin.initrd === null ? [] : ['-initrd', inPackage(origin.initrd)]),
    ...['-serial', 'chardev:console', '-device', 'virtio-serial-device'],
    ...['control', 'input', 'output', 'log'].flatMap((name) => [
      '-device',
      `virtserialport,chardev=${name},name=hypermesh.${name}`,
    ]),
    ...disk('files', '/snapshot/files', 'on'),
  ];
  if (origin.disk !== null) args.push(...disk('disk', inPackage(origin.disk), 'on'));
  if (origin.scratchBytes > 0) args.push(...disk('scratch', '/tmp/scratch', 'off'));
  return args;
}

function disk(name: string, file: string, readonly: 'on' | 'off'): string[] {
  // What cannot be written is the guest's error, and does not pause it.
  const drive = `id=${name},file=${file},format=raw,if=none,readonly=${readonly},werror=report,rerror=report`;
  return ['-drive', drive, '-device', `virtio-blk-device,drive=${name},serial=${name}`];
}

/** Name and clock of the processor, as the kernel of this computer has them. */
export async function processorOf(): Promise<{ readonly name: string; readonly khz: number | null }> {
  const text = await readFile('/proc/cpuinfo', 'utf8').catch(() => '');
  const mhz = /^cpu MHz\s*:\s*([\d.]+)/m.exec(text)?.[1];
  return {
    name: (/^model name\s*:\s*(.*)$/m.exec(text)?.[1] ?? process.arch).slice(0, 256),
    khz: mhz === undefined ? null : Math.round(Number(mhz) * 1000),
  };
}
