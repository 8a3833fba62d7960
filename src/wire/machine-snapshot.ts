import { z } from 'zod';
import { utf8 } from '../base/bytes.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import { HyperMeshError } from '../base/errors.ts';
import { canonicalJson } from '../base/json.ts';
import { digest } from './fields.ts';

/** What a snapshot of a virtual machine was made of: all that the guest had seen when it said that it is ready. */
const origin = z.strictObject({
  /** The package; its files are named in {@link kernel}, {@link initrd} and {@link disk}. */
  layer: digest,
  kernel: z.string().min(1).max(1024),
  initrd: z.string().min(1).max(1024).nullable(),
  disk: z.string().min(1).max(1024).nullable(),
  commandLine: z.string().max(1024),
  mounts: z.array(z.strictObject({ layer: digest, at: z.string().min(2).max(1024) })).max(1024),
  memoryMiB: z.int().positive(),
  processors: z.int().positive(),
  /** Of the disk that it may write. */
  scratchBytes: z.int().nonnegative(),
  accelerator: z.enum(['kvm', 'tcg']),
  /** Of the emulator's own file. */
  emulator: digest,
  /** Of all that the emulator is told about the machine and its devices. */
  arrangement: digest,
  /** Name of the processor of this computer, as its kernel has it. */
  processor: z.string().max(256),
});

/** `snapshot.json` beside a snapshot (docs/protocol/machine-snapshot.md). */
const machineSnapshot = z.strictObject({
  formatVersion: z.literal(1),
  origin,
  state: z.strictObject({ digest, bytes: z.int().positive() }),
  files: z.strictObject({ digest, bytes: z.int().positive() }),
  /** How long the guest took until it was ready. */
  bootMs: z.int().nonnegative(),
  madeAtMs: z.int().nonnegative(),
});

export type SnapshotOrigin = z.infer<typeof origin>;
export type MachineSnapshot = z.infer<typeof machineSnapshot>;

const CHARACTERS_MAX = 512 * 1024;

/** Names the folder of a snapshot. */
export function snapshotKey(from: SnapshotOrigin): Digest {
  return digestOf(utf8(canonicalJson(origin.parse(from))));
}

export function encodeMachineSnapshot(snapshot: MachineSnapshot): string {
  return `${JSON.stringify(machineSnapshot.parse(snapshot), null, 2)}\n`;
}

/** Errors: `config-invalid`. */
export function decodeMachineSnapshot(text: string): MachineSnapshot {
  const parsed = text.length > CHARACTERS_MAX ? undefined : machineSnapshot.safeParse(parseJson(text));
  if (parsed?.success === true) return parsed.data;
  const issue = parsed?.error.issues[0];
  const why = issue === undefined ? 'it is too long' : `${issue.path.join('.') || 'content'}: ${issue.message}`;
  throw new HyperMeshError('config-invalid', `The snapshot.json of a virtual machine is damaged: ${why}.`, {
    hint: 'The snapshot is made again by the next run.',
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
