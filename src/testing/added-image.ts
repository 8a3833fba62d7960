import { cp, link, mkdir, readdir, readlink, stat, symlink } from 'node:fs/promises';
import { homedir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { type AddedImage, findImage } from '../subsystems/vm/added/provision.ts';

/** The image of a language that was added to the usual home, or null: half a gigabyte is not fetched for a test. */
export function imageOfHome(language: 'julia' | 'python'): Promise<AddedImage | null> {
  return findImage(join(homedir(), '.hypermesh', 'vm', 'images'), language).catch(() => null);
}

/** Lays an image into the folder of images of a test. `isShared`: its files are those of the home, because copying them takes longer than most tests. */
export async function layImage(
  { root }: AddedImage,
  images: string,
  { isShared }: { readonly isShared: boolean },
): Promise<void> {
  await mkdir(images, { mode: 0o711 });
  const [from, to] = [dirname(root), join(images, basename(dirname(root)))];
  if (isShared) await share(from, to);
  else await cp(from, to, { recursive: true, preserveTimestamps: true, verbatimSymlinks: true });
}

async function share(from: string, to: string): Promise<void> {
  await mkdir(to, { mode: (await stat(from)).mode & 0o777 });
  for (const entry of await readdir(from, { withFileTypes: true })) {
    const [source, target] = [join(from, entry.name), join(to, entry.name)];
    if (entry.isDirectory()) await share(source, target);
    else if (entry.isSymbolicLink()) await symlink(await readlink(source), target);
    else await link(source, target).catch(() => cp(source, target, { preserveTimestamps: true }));
  }
}
