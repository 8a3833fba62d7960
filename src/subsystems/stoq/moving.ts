import type { Digest } from '../../base/digest.ts';
import type { Transfer } from '../../capabilities/transport.ts';
import type { Book } from './book.ts';
import type { OutgoingFigures } from './content/outgoing.ts';
import type { TransferFigures } from './content/transfer.ts';

/** A blob that somebody here waits for. */
export interface Fetching {
  readonly resource: Digest;
  readonly blob: Digest;
  readonly total: number;
  done: number;
}

/** What moves now, in both directions: what is fetched, each blob once, and who is given what. */
export function movingNow(
  fetching: Iterable<Fetching>,
  incoming: readonly TransferFigures[],
  outgoing: readonly OutgoingFigures[],
  book: Pick<Book, 'get' | 'resourcesWith'>,
): Transfer[] {
  const arriving = Map.groupBy(fetching, ({ blob }) => blob);
  return [
    ...[...arriving].map(([blob, [first, ...more]]): Transfer => {
      const figures = incoming.find((of) => of.blob === blob);
      return {
        ...{ direction: 'in', blob, total: first!.total },
        resources: [...new Set([first!, ...more].map(({ resource }) => resource))],
        done: Math.max(first!.done, ...more.map(({ done }) => done)),
        bytesPerSecond: figures?.bytesPerSecond ?? 0,
        peers: figures?.sources ?? [],
      };
    }),
    ...outgoing.map(({ blob, node, bytes, bytesPerSecond }): Transfer => {
      const resources = book.resourcesWith(blob);
      const description = resources[0] === undefined ? undefined : book.get(resources[0])?.blobs;
      return {
        ...{ direction: 'out', blob, resources, done: bytes, bytesPerSecond },
        total: description?.find(({ digest }) => digest === blob)?.size ?? bytes,
        peers: [{ node, bytes, bytesPerSecond }],
      };
    }),
  ];
}
