import { type CallOptions, orCancelled } from '../../base/call.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../base/errors.ts';
import type { ContentUse } from '../../capabilities/transport.ts';
import type { Ask } from './ask.ts';
import type { Book } from './book.ts';
import type { NodeId, RemoteNode } from './channel/index.ts';
import { guarded } from './content/guarded.ts';
import type { Source } from './content/source.ts';
import type { ContentAccess } from './options.ts';
import type { Replication } from './replication.ts';

/** What a node asks access for that takes a copy to keep: by its own list of nodes it is a place, by that of the other one it is not. */
const KEEPING = 'install';
/** In one proof. */
const TOGETHER_MAX = 1_000;

/** Both sides of access to content for use (docs/protocol/access.md): who may take it here, and showing others that this home may. */
export class Access {
  readonly #lent: ContentAccess;
  readonly #ask: Ask;
  readonly #book: Pick<Book, 'resourcesWith' | 'codedFrom'>;
  readonly #wasEntrusted: (node: NodeId, blob: Digest) => boolean;
  readonly #replication: () => Pick<Replication, 'isPlace'>;
  /** Proofs that are under way. */
  readonly #gaining = new Map<string, Promise<void>>();

  constructor(
    lent: ContentAccess,
    around: {
      readonly ask: Ask;
      readonly book: Pick<Book, 'resourcesWith' | 'codedFrom'>;
      /** Whether this node asked that one to keep the blob, which is a fragment. */
      readonly wasEntrusted: (node: NodeId, blob: Digest) => boolean;
      readonly replication: () => Pick<Replication, 'isPlace'>;
    },
  ) {
    this.#lent = lent;
    this.#ask = around.ask;
    this.#book = around.book;
    this.#wasEntrusted = around.wasEntrusted;
    this.#replication = around.replication;
  }

  /** Who uses content has shown that it may; who is asked to keep a copy has to get it. Errors: `access-needed`. */
  admit(blob: Digest, { node, publisher }: RemoteNode): void {
    const resources = this.#book.resourcesWith(blob);
    // A fragment is given to whoever may use what it is a part of.
    const used = [...resources, ...this.#book.codedFrom(blob)];
    if (publisher !== null && used.some((id) => this.#lent.has(publisher, id))) return;
    if (node !== null && resources.some((id) => this.#replication().isPlace(node, id))) return;
    if (node !== null && this.#wasEntrusted(node, blob)) return;
    throw new HyperMeshError('access-needed', 'This node gives content to whoever proves that it may use it.', {
      hint: 'HyperMesh does so by itself: try again.',
    });
  }

  /** For one download: sources that are shown what they want to see, and why nobody gave it, where that is the reason. */
  for(
    resource: Digest,
    { use, signal }: CallOptions & { readonly use?: ContentUse },
  ): { readonly from: (source: Source) => Source; readonly told: (error: unknown) => unknown } {
    const all = [...(use?.resources ?? [resource])].sort();
    const at = Math.max(0, all.indexOf(resource));
    const from = at - (at % TOGETHER_MAX);
    const wanted = { kind: use?.kind ?? KEEPING, resources: all.slice(from, from + TOGETHER_MAX) } as const;
    const known = new Map<Source, Source>();
    let refusal: unknown;
    const gain = async (node: NodeId) => {
      try {
        await this.#gain(node, wanted, signal);
      } catch (error) {
        refusal = error;
        throw error;
      }
    };
    return {
      from: (source) => {
        const same = known.get(source) ?? guarded(source, { first: use !== undefined, gain: () => gain(source.node) });
        known.set(source, same);
        return same;
      },
      told: (error) =>
        isCoded(error, 'content-unavailable') && isCoded(refusal)
          ? new HyperMeshError(refusal.code, `No node gave the content. ${refusal.message}`, {
              ...(refusal.hint === undefined ? {} : { hint: refusal.hint }),
              cause: error,
            })
          : error,
    };
  }

  /** One proof for all that is taken from a node at the same time. */
  async #gain(node: NodeId, use: ContentUse, signal: AbortSignal | undefined): Promise<void> {
    const key = `${node} ${use.kind} ${use.resources.join()}`;
    let gaining = this.#gaining.get(key);
    if (gaining === undefined) {
      gaining = this.#lent
        .gain(node, use, (method, body, options) => this.#ask(node, method, body, options))
        .finally(() => this.#gaining.delete(key));
      this.#gaining.set(key, gaining);
    }
    await orCancelled(gaining, signal);
  }
}
