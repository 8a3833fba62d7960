import { statfs } from 'node:fs/promises';

const LOOKING_MS = 50;
/** Of a disk, but of a large one no more than {@link RESERVE_BYTES_MAX}: what fills a disk within two looks is less. */
const RESERVE_SHARE = 0.05;
const RESERVE_BYTES_MAX = 2 ** 30;

/**
 * Looks whether the disk behind a folder of the owner has room left, until it is disposed. Nothing bounds what a program writes there in all, but
 * the machine, and the node itself, must go on.
 */
export function watchRoom(folder: string, isFull: (leftBytes: number) => void): Disposable {
  let isOver = false;
  let timer: NodeJS.Timeout | undefined;
  const look = async () => {
    const { bavail, blocks, bsize, files, ffree } = await statfs(folder);
    const reserve = Math.min(RESERVE_BYTES_MAX, RESERVE_SHARE * blocks * bsize);
    // Some file systems have no number of files.
    const hasRoom = bavail * bsize >= reserve && (files === 0 || ffree >= RESERVE_SHARE * files);
    if (!hasRoom && !isOver) isFull(bavail * bsize);
  };
  const turn = () => {
    // A folder that is gone takes no bytes.
    void look()
      .catch(() => {})
      .then(() => {
        if (!isOver) timer = setTimeout(turn, LOOKING_MS).unref();
      });
  };
  turn();
  return {
    [Symbol.dispose]: () => {
      isOver = true;
      clearTimeout(timer);
    },
  };
}
