import { equal, fromHex, hex } from '../../base/bytes.ts';
import { type Digest, sha256 } from '../../base/digest.ts';
import { isCoded } from '../../base/errors.ts';
import type { ContentExchange } from '../../capabilities/content.ts';
import type { Resource } from '../../capabilities/transport.ts';
import {
  AUDIT_BYTES_MAX,
  type AuditQuestion,
  auditAnswer,
  auditQuestion,
  decodeMessage,
  encodeMessage,
  OVERLAY_BYTES_MAX,
} from '../../wire/overlay.ts';
import type { Answer, Surroundings } from './ask.ts';
import type { NodeId } from './channel/index.ts';

const AUDIT_TIMEOUT_MS = 10_000;
/** What reading says of content that is not here, or not whole. */
const MISSED = ['blob-not-found', 'storage-failed'] as const;

/** Fills `into` with bytes from `offset` on. */
type ReadAt = (offset: number, into: Uint8Array) => Promise<void>;

export interface AuditLent {
  readonly content: Pick<ContentExchange, 'readHeld'>;
  /** Whether the blob belongs to something that the network was told of. */
  readonly isShared: (blob: Digest) => boolean;
  /** A blob that this node is to have is not here. */
  readonly missed: (blob: Digest) => void;
}

/**
 * Whether who says that it holds something does: it hashes bytes of a random place, which the one who asks has as well, together with a fresh number.
 * That shows that it can get at them now, and moves no content. It does not show that the copy is its own: it may have asked another holder.
 */
export class Audit {
  readonly #around: Pick<Surroundings, 'ask' | 'random'>;
  readonly #lent: AuditLent;

  constructor(around: Pick<Surroundings, 'ask' | 'random'>, lent: AuditLent) {
    this.#around = around;
    this.#lent = lent;
  }

  answers(): ReadonlyMap<string, Answer> {
    return new Map<string, Answer>([
      ['resources/audit', async (body) => this.#show(decodeMessage(auditQuestion, body))],
    ]);
  }

  /** Asks about one range, a blob being chosen by its size; what is to come of it is what `read` gives, the blob that is here when absent. False also when it does not answer, or refuses. Errors: those of reading what is held here. */
  async holds(node: NodeId, { blobs }: Pick<Resource, 'blobs'>, read?: ReadAt): Promise<boolean> {
    const total = blobs.reduce((sum, { size }) => sum + size, 0);
    let at = Math.floor(this.#around.random() * total);
    const blob = blobs.find(({ size }) => {
      at -= size;
      return at < 0;
    });
    // There is nothing in it.
    if (blob === undefined) return true;
    const length = Math.min(AUDIT_BYTES_MAX, blob.size);
    const offset = Math.floor(this.#around.random() * (blob.size - length + 1));
    const nonce = hex(Uint8Array.from({ length: 16 }, () => Math.floor(this.#around.random() * 256)));
    const question: AuditQuestion = { blob: blob.digest, offset, length, nonce };
    const options = { replyBytesMax: OVERLAY_BYTES_MAX, timeoutMs: AUDIT_TIMEOUT_MS };
    let proof: string | null;
    try {
      const answer = await this.#around.ask(node, 'resources/audit', encodeMessage({ ...question }), options);
      ({ proof } = decodeMessage(auditAnswer, answer));
    } catch (error) {
      // With whatever code: the other side chooses it.
      if (!isCoded(error)) throw error;
      return false;
    }
    return proof !== null && equal(fromHex(proof), await this.#proof(question, read));
  }

  async #show(question: AuditQuestion): Promise<Uint8Array> {
    const { blob } = question;
    if (!this.#lent.isShared(blob)) return encodeMessage({ proof: null });
    try {
      return encodeMessage({ proof: hex(await this.#proof(question)) });
    } catch (error) {
      if (!isCoded(error, ...MISSED)) throw error;
      return encodeMessage({ proof: null });
    }
  }

  async #proof({ blob, offset, length, nonce }: AuditQuestion, read?: ReadAt): Promise<Uint8Array> {
    const bytes = new Uint8Array(16 + length);
    bytes.set(fromHex(nonce));
    if (read !== undefined) {
      await read(offset, bytes.subarray(16));
      return sha256(bytes);
    }
    try {
      await this.#lent.content.readHeld(blob, offset, bytes.subarray(16));
    } catch (error) {
      if (isCoded(error, ...MISSED)) this.#lent.missed(blob);
      throw error;
    }
    return sha256(bytes);
  }
}
