import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { chmod, cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const TEMPLATE = fileURLToPath(new URL('../../templates/virtual-machine/', import.meta.url));
const BUILD_MS = 600_000;

export interface Guest {
  readonly kernel: Uint8Array;
  readonly initrd: Uint8Array;
  /** `machine.json` of the template. */
  readonly machine: Readonly<Record<string, unknown>>;
}

/**
 * The template of a virtual machine, built from packages of the distribution, with scripts of busybox beside its program: name -> text.
 * When it cannot be built here, the reason.
 */
export async function buildGuest(
  scripts: Readonly<Record<string, string>> = {},
  /** Other first programs, made from the text of the template's. */
  inits: (init: string) => Readonly<Record<string, string>> = () => ({}),
): Promise<Guest | string> {
  if (!existsSync('/usr/bin/qemu-system-x86_64')) return 'qemu-system-x86_64 is not installed';
  const folder = await mkdtemp(path.join(tmpdir(), 'hypermesh-guest-'));
  try {
    await cp(TEMPLATE, folder, { recursive: true });
    const init = await readFile(path.join(folder, 'guest', 'init'), 'utf8');
    const programs = Object.entries(scripts).map(([name, text]) => [name, `#!/bin/sh\n${text}\n`] as const);
    for (const [name, text] of [...programs, ...Object.entries(inits(init))]) {
      await writeFile(path.join(folder, 'guest', name), text);
      await chmod(path.join(folder, 'guest', name), 0o755);
    }
    await promisify(execFile)(path.join(folder, 'build.sh'), [], { timeout: BUILD_MS });
    return {
      kernel: await readFile(path.join(folder, 'vmlinuz')),
      initrd: await readFile(path.join(folder, 'initrd.gz')),
      machine: JSON.parse(await readFile(path.join(folder, 'machine.json'), 'utf8')) as Record<string, unknown>,
    };
  } catch (error) {
    return `no guest can be built: ${String((error as { stderr?: string }).stderr ?? error).trim()}`;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Files of a package: the guest, and one description for each program in it, named as the program and `.json`. */
export function machineFiles(guest: Guest, programs: readonly string[]): Record<string, Uint8Array> {
  return {
    vmlinuz: guest.kernel,
    'initrd.gz': guest.initrd,
    ...Object.fromEntries(
      programs.map((name) => [`${name}.json`, Buffer.from(JSON.stringify({ ...guest.machine, program: `/${name}` }))]),
    ),
  };
}
