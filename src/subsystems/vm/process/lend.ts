import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { mkdir, open, readdir, readlink, rmdir } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import { HyperMeshError } from '../../../base/errors.ts';
import type { BoxSpec } from './box.ts';
import { type Machine, WINDOW } from './machine.ts';

type Folder = NonNullable<BoxSpec['folders']>[number];

const MOUNT_MS_MAX = 10_000;

/** A folder of the owner, as options of bubblewrap; given back when the box is gone. */
export interface LentFolder extends AsyncDisposable {
  readonly options: readonly string[];
}

/**
 * Shows a folder of the owner to one box. As root, boxes are users of their own who cannot walk there: the folder is mounted where they can, in the namespace
 * that only boxes see. Errors: `policy-refused` when the path leads elsewhere than it says, or the user of the box has no right to what is in it.
 */
export async function lendFolder(
  { source, at, isWritable }: Folder,
  { machine, directory }: { readonly machine: Machine; readonly directory: string },
): Promise<LentFolder> {
  const how = isWritable ? '--bind' : '--ro-bind';
  await using folder = await open(source, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW).catch(
    (cause: unknown) => {
      throw refused(source, 'cannot be opened', cause);
    },
  );
  // Where the open folder really lies: no link on the way.
  if ((await readlink(`/proc/self/fd/${folder.fd}`)) !== source)
    throw refused(source, 'is not the folder any more that was granted');
  const { asRoot } = machine.tools;
  if (asRoot === null) return { options: [how, source, at], async [Symbol.asyncDispose]() {} };

  const there = await folder.stat();
  const right = isWritable ? 0o7 : 0o5;
  if ((there.mode & right) !== right) {
    throw new HyperMeshError(
      'policy-refused',
      `This node runs as root, and programs as users of their own: they cannot ${isWritable ? 'write' : 'read'} ${source}.`,
      {
        hint: `Let them: chmod o+rx${isWritable ? 'w' : ''} ${source}; or run the node as the user whose folder it is.`,
      },
    );
  }
  const name = path.join('lent', randomBytes(16).toString('hex'));
  const place = path.join(WINDOW, name);
  await mkdir(path.join(directory, 'lent'), { recursive: true, mode: 0o711 });
  await mkdir(path.join(directory, name), { mode: 0o711 });
  const inWindow = async (...command: string[]) => {
    const args = [`--mount=/proc/${process.pid}/fd/${machine.window!.fd}`, '--', ...command];
    const { stdout } = await promisify(execFile)(asRoot.nsenter, args, { env: {}, cwd: '/', timeout: MOUNT_MS_MAX });
    return stdout.trim();
  };
  const lent: LentFolder = {
    options: [how, place, at],
    async [Symbol.asyncDispose]() {
      await inWindow(asRoot.umount, '--lazy', place).catch(() => {});
      await rmdir(path.join(directory, name)).catch(() => {});
    },
  };
  try {
    await inWindow(asRoot.mount, '--bind', source, place);
    // The same folder, or somebody changed the path meanwhile.
    if ((await inWindow(machine.tools.stat, '--format=%d:%i', place)) !== `${there.dev}:${there.ino}`)
      throw refused(source, 'was mounted or moved after the node started; start the node again');
    return lent;
  } catch (cause) {
    await lent[Symbol.asyncDispose]();
    throw cause instanceof HyperMeshError ? cause : refused(source, 'cannot be mounted', cause);
  }
}

/** Removes the places of folders that a killed node lent: empty, as the mounts were in a namespace that ended with its programs. */
export async function forgetLent(directory: string): Promise<void> {
  const places = path.join(directory, 'lent');
  for (const name of await readdir(places).catch(() => [])) await rmdir(path.join(places, name)).catch(() => {});
}

function refused(folder: string, why: string, cause?: unknown): HyperMeshError {
  return new HyperMeshError('policy-refused', `The folder ${folder} cannot be lent to a program: it ${why}.`, {
    hint: 'Grant it again, or another folder: `hypermesh grants` shows what is granted.',
    ...(cause === undefined ? {} : { cause }),
  });
}
