import collections, json, pathlib, re, sys

wanted = json.load(sys.stdin) or {}
counts = collections.Counter()
books = sorted(pathlib.Path('/folders/books').glob('*.txt'))
for book in books:
    counts.update(re.findall(r'\w+', book.read_text(encoding='utf-8').lower()))

index = pathlib.Path('/folders/index/words.json')
index.write_text(json.dumps(dict(sorted(counts.items())), ensure_ascii=False), encoding='utf-8')
print(json.dumps({'books': len(books), 'words': counts.total(), 'most': counts.most_common(wanted.get('top', 3))}))
