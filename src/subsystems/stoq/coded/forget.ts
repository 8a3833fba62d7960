import type { Digest } from '../../../base/digest.ts';
import type { ContentExchange } from '../../../capabilities/content.ts';
import type { Book } from '../book.ts';

/** Forgets codings, and what is kept here because of them. */
export async function forgetCodings(
  { book, content }: { readonly book: Book; readonly content: Pick<ContentExchange, 'drop'> },
  codings: readonly Digest[],
): Promise<void> {
  for (const id of codings) await content.drop(book.dropCoding(id));
}
