import { systemClock } from '../../../base/clock.ts';
import { certifiedNode } from '../../../testing/certified-network.ts';
import { openChannel } from './index.ts';
import { ENDLESS, type Order } from './test-peers.ts';

/** A node in a process of its own, that a test can kill. Orders come and answers go over the channel of `fork`. */
process.once('message', ({ secrets, networkId }: Extract<Order, { secrets: unknown }>) => {
  const { trust } = certifiedNode(secrets);
  const methods = new Map([
    ['test/echo', { access: 'member' as const, requestBytesMax: 1 << 20, handle: async (body: Uint8Array) => body }],
    [
      'test/endless',
      {
        access: 'member' as const,
        requestBytesMax: 0,
        handle: async () => ({ head: new Uint8Array(0), body: endless() }),
      },
    ],
    [
      'test/wait',
      { access: 'member' as const, requestBytesMax: 0, handle: () => new Promise<Uint8Array>(() => undefined) },
    ],
  ]);
  const blobs = { open: async () => ({ size: 2 ** 40, read: async (_: number, into: Uint8Array) => into }) };
  const channel = openChannel({ networkId, clock: systemClock, trust, methods, blobs });
  void channel.listen('127.0.0.1', 0).then(({ port }) => process.send?.({ port }));
  process.on('message', (order: Extract<Order, { address: string }>) => {
    void fetchFrom(order).then(
      (bytes) => process.send?.({ bytes }),
      (error: Error) => process.send?.({ error: error.message }),
    );
  });

  async function fetchFrom({ address, expect, length }: Extract<Order, { address: string }>): Promise<number> {
    const connection = await channel.connect(address, { expect });
    let bytes = 0;
    await connection.fetchRange(ENDLESS, { offset: 0, length }, (piece) => {
      bytes += piece.length;
    });
    return bytes;
  }
});

async function* endless(): AsyncGenerator<Uint8Array, void, undefined> {
  const piece = new Uint8Array(100_000);
  for (;;) yield piece;
}
