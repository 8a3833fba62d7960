import { mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { storageError } from '../base/errors.ts';
import type { NKrypt } from '../subsystems/nkrypt/index.ts';
import type { TrustChain } from '../subsystems/trustchain/index.ts';
import { decodeNetworkMove, encodeNetworkMove, type NetworkMove } from '../wire/certification.ts';
import { decodeGenesis } from '../wire/genesis.ts';

/**
 * A change of network spans databases, so it is written down first and can be done again from the start:
 *
 *   network/move.json.new   crash: nothing happened
 *   network/move.json       the commit point: from here on the change happens, now or at the next start
 *   trust, consensus, index each in one transaction that may be repeated
 *   move.json removed       done
 */
const MOVE = 'move.json';

interface MoveLent {
  readonly trust: Pick<TrustChain, 'adopt' | 'abandon'>;
  readonly consensus: Pick<NKrypt, 'adopt' | 'abandon'>;
  readonly assets: { forget(): Promise<void> };
}

/** Writes the change down, which is the commit point, and makes it. */
export async function makeMove(lent: MoveLent, directory: string, move: NetworkMove): Promise<void> {
  await writeWhole(directory, encodeNetworkMove(move));
  await finishMove(lent, directory);
}

/** To be called once at every start, after the parts were opened and before anything else uses them: finishes a change that a crash interrupted. */
export async function finishMove({ trust, consensus, assets }: MoveLent, directory: string): Promise<void> {
  await rm(join(directory, `${MOVE}.new`), { force: true });
  const text = await readFile(join(directory, MOVE), 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw storageError(error, 'reading the move to another network');
  });
  if (text === null) return;
  const move = decodeNetworkMove(text);
  switch (move.kind) {
    case 'join': {
      const { certification } = move;
      const { networkId } = decodeGenesis(certification.genesis);
      await trust.adopt(certification, {
        networkId,
        committee: certification.committee,
        joinedAtMs: certification.atMs,
      });
      await consensus.adopt(certification.genesis);
      break;
    }
    case 'leave':
      await trust.abandon();
      await consensus.abandon();
      break;
  }
  if (move.forget) await assets.forget();
  await rm(join(directory, MOVE), { force: true });
}

/** Durable and all or nothing. */
async function writeWhole(directory: string, text: string): Promise<void> {
  const path = join(directory, MOVE);
  try {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    {
      await using file = await open(`${path}.new`, 'w', 0o600);
      await file.writeFile(text);
      await file.sync();
    }
    await rename(`${path}.new`, path);
    await using folder = await open(directory);
    await folder.sync();
  } catch (error) {
    throw storageError(error, `writing ${path}`);
  }
}
