import { z } from 'zod';
import { HyperMeshError } from '../../../base/errors.ts';
import { digest } from '../../../wire/fields.ts';
import { invalid } from './tar.ts';

/** What an image says about its program; kept beside its unpacked files. Only this version of the node reads it again. */
const program = z.strictObject({
  formatVersion: z.literal(1),
  image: digest,
  entrypoint: z.array(z.string()),
  cmd: z.array(z.string()),
  /** `NAME=value` */
  env: z.array(z.string()),
  workingDir: z.string().startsWith('/'),
  uid: z.int().min(1),
  gid: z.int().min(1),
});

export type ImageProgram = z.infer<typeof program>;

export function encodeProgram(given: ImageProgram): string {
  return JSON.stringify(program.parse(given));
}

export function decodeProgram(text: string): ImageProgram {
  return program.parse(JSON.parse(text));
}

const NOBODY = 65_534;
const ID_MAX = 2 ** 31 - 1;

/**
 * `User` of an image as numbers: `user[:group]`, each a number or a name in the tables of the image. Root is nobody: the box has no root.
 * Errors: `program-invalid` on a name that is in no table.
 */
export function userOf(user: string, passwd: string, group: string): { readonly uid: number; readonly gid: number } {
  const [name = '', groupName] = user.split(':');
  const account = rows(passwd).find(([one, , uid]) => one === name || uid === name);
  const uid = /^\d+$/.test(name) ? Number(name) : name === '' || name === 'root' ? 0 : idOf(account?.[2], 'user', name);
  const gid =
    groupName === undefined
      ? Number(account?.[3] ?? 0)
      : /^\d+$/.test(groupName)
        ? Number(groupName)
        : idOf(rows(group).find(([one]) => one === groupName)?.[2], 'group', groupName);
  return { uid: known(uid), gid: known(gid) };
}

function rows(table: string): string[][] {
  return table.split('\n').map((line) => line.split(':'));
}

function idOf(id: string | undefined, what: string, name: string): number {
  if (id !== undefined && /^\d+$/.test(id)) return Number(id);
  throw invalid(`its ${what} ${JSON.stringify(name.slice(0, 100))} is in no table of it`);
}

function known(id: number): number {
  return id >= 1 && id <= ID_MAX ? id : NOBODY;
}

/**
 * What starts, as container tools put it together: the entrypoint, and after it the arguments of the caller, or the image's own when he gives none.
 * Errors: `program-invalid` when there is nothing to start.
 */
export function commandOf({ entrypoint, cmd }: ImageProgram, args: readonly string[]): readonly [string, ...string[]] {
  const [first, ...rest] = [...entrypoint, ...(args.length > 0 ? args : cmd)];
  if (first !== undefined && first !== '') return [first, ...rest];
  throw new HyperMeshError('program-invalid', 'The image names no program to start, and neither does the caller.', {
    hint: 'Give the image an `Entrypoint` or a `Cmd`, or name a program after the reference: `hypermesh run REF /bin/program`.',
  });
}
