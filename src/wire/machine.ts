import { z } from 'zod';
import { HyperMeshError } from '../base/errors.ts';

/**
 * The entry of a package of type `virtual-machine` (docs/protocol/machine.md): which of its files are the kernel, the first file system
 * and the disk, and what the machine is started with.
 */
const file = z
  .string()
  .max(1024)
  .regex(/^[A-Za-z0-9_][A-Za-z0-9._-]*(\/[A-Za-z0-9_][A-Za-z0-9._-]*)*$/, 'expected the path of a file in the package');
const machine = z.strictObject({
  formatVersion: z.literal(1),
  architecture: z.literal('x86_64'),
  kernel: file,
  initrd: file.optional(),
  /** Its bytes are those of the disk; the guest can only read it. */
  disk: file.optional(),
  /** Printable ASCII. */
  commandLine: z
    .string()
    .max(1024)
    .regex(/^[\x20-\x7e]*$/, 'expected printable ASCII')
    .default(''),
  /** What the guest is told to start; the guest knows what it means. */
  program: z.string().min(1).max(1024).default('/main'),
});

export type MachineFile = z.infer<typeof machine>;

/** Characters of such a file. */
export const MACHINE_FILE_CHARACTERS_MAX = 64 * 1024;

/** Errors: `program-invalid`. */
export function decodeMachineFile(text: string): MachineFile {
  const parsed = text.length > MACHINE_FILE_CHARACTERS_MAX ? undefined : machine.safeParse(parseJson(text));
  if (parsed?.success === true) return parsed.data;
  const issue = parsed?.error.issues[0];
  const why = issue === undefined ? 'it is too long' : `${issue.path.join('.') || 'content'}: ${issue.message}`;
  throw new HyperMeshError('program-invalid', `The description of a virtual machine is not valid: ${why}.`, {
    hint: 'docs/protocol/machine.md describes every member; `hypermesh new virtual-machine DIR` makes an example.',
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
