import type { CallOptions } from '../base/call.ts';
import { systemClock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import type { BlobDescription } from '../capabilities/content.ts';
import { type AssetStore, openAssets } from '../subsystems/assets/index.ts';
import { type Channel, openChannel } from '../subsystems/stoq/channel/index.ts';
import {
  type Accusation,
  bulkSource,
  type ContentServing,
  contentMethods,
  Downloader,
  type DownloadLimits,
  type DownloadReport,
  Outgoing,
  Shaper,
  sourceOf,
} from '../subsystems/stoq/content/index.ts';
import type { CertifiedNode } from './certified-network.ts';

export interface ContentNodeOptions {
  readonly networkId: Digest;
  readonly directory: string;
  readonly certified: CertifiedNode;
  readonly limits?: Partial<DownloadLimits>;
  readonly uploadBytesPerSecond?: number;
  readonly served?: ContentServing['served'];
}

/** Where another node listens, and who it is. */
export interface Place {
  readonly address: string;
  readonly node: string;
}

/** A content store on disk, a channel over loopback, a server and a downloader: what moves content in a node, and nothing else. */
export class ContentNode implements AsyncDisposable, Place {
  readonly node: string;
  readonly address: string;
  readonly store: AssetStore;
  readonly channel: Channel;
  readonly outgoing: Outgoing;
  readonly downloader: Downloader;
  readonly accusations: Accusation[];

  static async open(options: ContentNodeOptions): Promise<ContentNode> {
    const { directory, networkId, certified } = options;
    const store = await openAssets({ directory, clock: systemClock });
    const outgoing = new Outgoing();
    const serving: ContentServing = {
      store: store.exchange,
      served: options.served ?? (() => true),
      admit: () => undefined,
      uploads: new Shaper(options.uploadBytesPerSecond ?? null),
      outgoing,
    };
    const channel = openChannel({
      ...{ networkId, clock: systemClock, trust: certified.trust },
      ...{ methods: contentMethods(serving), blobs: bulkSource(serving) },
    });
    const { host, port } = await channel.listen('127.0.0.1', 0);
    return new ContentNode(`${host}:${port}`, certified.node, { store, channel, outgoing }, options.limits);
  }

  private constructor(
    address: string,
    node: string,
    { store, channel, outgoing }: Pick<ContentNode, 'store' | 'channel' | 'outgoing'>,
    limits: Partial<DownloadLimits> | undefined,
  ) {
    this.address = address;
    this.node = node;
    this.store = store;
    this.channel = channel;
    this.outgoing = outgoing;
    this.accusations = [];
    this.downloader = new Downloader(
      {
        ...{ store: store.exchange, clock: systemClock, random: Math.random, downloads: new Shaper(null) },
        accuse: (accusation) => this.accusations.push(accusation),
      },
      limits,
    );
  }

  /** From whichever of the others can be reached, looked for again as long as it lasts. */
  fetch(blob: BlobDescription, others: readonly Place[], options?: CallOptions): Promise<DownloadReport> {
    const sources = async () => {
      const connections = await Promise.allSettled(
        others.map(({ address, node }) => this.channel.connect(address, { expect: node })),
      );
      return connections.flatMap((of) => (of.status === 'fulfilled' ? [sourceOf(of.value)] : []));
    };
    return this.downloader.fetch(blob, { sources }, options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.channel[Symbol.asyncDispose]();
    await this.store[Symbol.asyncDispose]();
  }
}
