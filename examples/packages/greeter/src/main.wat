;; Greets a person: {"name": "Ada", "language": "fr"} in, {"greeting": "Bonjour, Ada !"} out.
;;
;; The greeting comes from a file of the package hello/phrases, {"language": …, "before": "Bonjour, ", "after": " !"}.
;; Text is copied from JSON to JSON as it stands, escapes included, so it needs no decoding.
;;
;; Memory, 4 pages:
;;        0   what WASI reads and writes: an io vector (pointer, length), a count, a file descriptor
;;       64   constants
;;     1024   the path of the phrase file
;;     4096   the input, at most 60 KiB
;;    65536   the phrase file, at most 64 KiB
;;   131072   the output

(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))

  (memory (export "memory") 4)
  (data (i32.const 64) "name")
  (data (i32.const 72) "language")
  (data (i32.const 80) "before")
  (data (i32.const 88) "after")
  (data (i32.const 96) "world")
  (data (i32.const 104) "en")
  (data (i32.const 112) "packages/hello/phrases/greetings/") ;; 33 bytes
  (data (i32.const 152) ".json")
  (data (i32.const 160) "{\"greeting\":\"") ;; 13 bytes
  (data (i32.const 176) "\"}\n")
  (data (i32.const 192) "The input is too large.\n") ;; 24
  (data (i32.const 224) "The language must be a code such as \"en\".\n") ;; 42
  (data (i32.const 272) "hello/phrases has no greeting in that language.\n") ;; 48

  ;; The string that $member found.
  (global $found (mut i32) (i32.const 0))
  (global $found_length (mut i32) (i32.const 0))
  ;; Where $put writes next.
  (global $at (mut i32) (i32.const 0))

  (func (export "_start")
    (local $input_end i32)
    (local $phrase_end i32)
    (local $name i32)
    (local $name_length i32)
    (local.set $input_end (call $read_all (i32.const 0) (i32.const 4096) (i32.const 61440)))

    ;; The path of the phrase file, from the language.
    (if (i32.eqz (call $member (i32.const 4096) (local.get $input_end) (i32.const 72) (i32.const 8)))
      (then
        (global.set $found (i32.const 104))
        (global.set $found_length (i32.const 2))))
    (if (i32.eqz (call $is_code (global.get $found) (global.get $found_length)))
      (then (call $fail (i32.const 224) (i32.const 42))))
    (global.set $at (i32.const 1024))
    (call $put (i32.const 112) (i32.const 33))
    (call $put (global.get $found) (global.get $found_length))
    (call $put (i32.const 152) (i32.const 5))

    ;; Descriptor 3 is the root of what a program sees. The file is opened for reading (right 2).
    (if (call $path_open (i32.const 3) (i32.const 1)
          (i32.const 1024) (i32.sub (global.get $at) (i32.const 1024))
          (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 12))
      (then (call $fail (i32.const 272) (i32.const 48))))
    (local.set $phrase_end
      (call $read_all (i32.load (i32.const 12)) (i32.const 65536) (i32.const 65535)))

    ;; The name, before it is overwritten by the next $member.
    (if (call $member (i32.const 4096) (local.get $input_end) (i32.const 64) (i32.const 4))
      (then
        (local.set $name (global.get $found))
        (local.set $name_length (global.get $found_length)))
      (else
        (local.set $name (i32.const 96))
        (local.set $name_length (i32.const 5))))

    ;; {"greeting":"<before><name><after>"}
    (global.set $at (i32.const 131072))
    (call $put (i32.const 160) (i32.const 13))
    (if (call $member (i32.const 65536) (local.get $phrase_end) (i32.const 80) (i32.const 6))
      (then (call $put (global.get $found) (global.get $found_length))))
    (call $put (local.get $name) (local.get $name_length))
    (if (call $member (i32.const 65536) (local.get $phrase_end) (i32.const 88) (i32.const 5))
      (then (call $put (global.get $found) (global.get $found_length))))
    (call $put (i32.const 176) (i32.const 3))
    (call $write_all (i32.const 1) (i32.const 131072) (global.get $at)))

  ;; Copies bytes to where the last $put ended.
  (func $put (param $from i32) (param $length i32)
    (memory.copy (global.get $at) (local.get $from) (local.get $length))
    (global.set $at (i32.add (global.get $at) (local.get $length))))

  ;; Finds the string member $key of the JSON object in $at…$end; sets $found. Only names at the top level count.
  (func $member (param $at i32) (param $end i32) (param $key i32) (param $key_length i32) (result i32)
    (local $depth i32)
    (local $char i32)
    (local $start i32)
    (local $is_key i32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (local.set $char (i32.load8_u (local.get $at)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        ;; { and [ open, } and ] close; they differ from each other by bit 0x20 alone
        (if (i32.eq (i32.or (local.get $char) (i32.const 0x20)) (i32.const 0x7b))
          (then
            (local.set $depth (i32.add (local.get $depth) (i32.const 1)))
            (br $next)))
        (if (i32.eq (i32.or (local.get $char) (i32.const 0x20)) (i32.const 0x7d))
          (then
            (local.set $depth (i32.sub (local.get $depth) (i32.const 1)))
            (br $next)))
        (br_if $next (i32.ne (local.get $char) (i32.const 0x22)))
        ;; a string: the key, when it stands at the top, reads the same, and a colon follows
        (local.set $start (local.get $at))
        (local.set $at (call $string_end (local.get $at) (local.get $end)))
        (local.set $is_key
          (i32.and
            (i32.eq (local.get $depth) (i32.const 1))
            (call $same (local.get $start) (i32.sub (local.get $at) (local.get $start))
                        (local.get $key) (local.get $key_length))))
        (local.set $at (call $skip_space (i32.add (local.get $at) (i32.const 1)) (local.get $end)))
        (br_if $next (i32.eqz (local.get $is_key)))
        (br_if $next (i32.ge_u (local.get $at) (local.get $end)))
        (br_if $next (i32.ne (i32.load8_u (local.get $at)) (i32.const 0x3a)))
        (local.set $at (call $skip_space (i32.add (local.get $at) (i32.const 1)) (local.get $end)))
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (br_if $done (i32.ne (i32.load8_u (local.get $at)) (i32.const 0x22)))
        (global.set $found (i32.add (local.get $at) (i32.const 1)))
        (global.set $found_length
          (i32.sub (call $string_end (global.get $found) (local.get $end)) (global.get $found)))
        (return (i32.const 1))))
    (i32.const 0))

  ;; The place of the quotation mark that ends the string which begins at $at.
  (func $string_end (param $at i32) (param $end i32) (result i32)
    (local $char i32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (local.set $char (i32.load8_u (local.get $at)))
        (br_if $done (i32.eq (local.get $char) (i32.const 0x22)))
        ;; a backslash takes the next character with it
        (local.set $at
          (i32.add (local.get $at)
            (select (i32.const 2) (i32.const 1) (i32.eq (local.get $char) (i32.const 0x5c)))))
        (br $next)))
    (select (local.get $at) (local.get $end) (i32.lt_u (local.get $at) (local.get $end))))

  (func $skip_space (param $at i32) (param $end i32) (result i32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
        (br_if $done (i32.gt_u (i32.load8_u (local.get $at)) (i32.const 0x20)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    (local.get $at))

  (func $same (param $a i32) (param $a_length i32) (param $b i32) (param $b_length i32) (result i32)
    (if (i32.ne (local.get $a_length) (local.get $b_length)) (then (return (i32.const 0))))
    (loop $next
      (if (i32.eqz (local.get $a_length)) (then (return (i32.const 1))))
      (local.set $a_length (i32.sub (local.get $a_length) (i32.const 1)))
      (br_if $next
        (i32.eq
          (i32.load8_u (i32.add (local.get $a) (local.get $a_length)))
          (i32.load8_u (i32.add (local.get $b) (local.get $a_length))))))
    (i32.const 0))

  ;; Whether a text is 1 to 16 letters a to z: it becomes part of a path.
  (func $is_code (param $at i32) (param $length i32) (result i32)
    (if (i32.gt_u (i32.sub (local.get $length) (i32.const 1)) (i32.const 15)) (then (return (i32.const 0))))
    (loop $next
      (local.set $length (i32.sub (local.get $length) (i32.const 1)))
      (if (i32.gt_u
            (i32.sub (i32.load8_u (i32.add (local.get $at) (local.get $length))) (i32.const 0x61))
            (i32.const 25))
        (then (return (i32.const 0))))
      (br_if $next (local.get $length)))
    (i32.const 1))

  ;; Reads a descriptor to its end; returns where the bytes end. More than $max bytes is a failure.
  (func $read_all (param $fd i32) (param $at i32) (param $max i32) (result i32)
    (local $got i32)
    (loop $next
      (i32.store (i32.const 0) (local.get $at))
      (i32.store (i32.const 4) (local.get $max))
      (if (call $fd_read (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
      (local.set $got (i32.load (i32.const 8)))
      (local.set $at (i32.add (local.get $at) (local.get $got)))
      (local.set $max (i32.sub (local.get $max) (local.get $got)))
      (if (i32.eqz (local.get $max)) (then (call $fail (i32.const 192) (i32.const 24))))
      (br_if $next (local.get $got)))
    (local.get $at))

  (func $write_all (param $fd i32) (param $at i32) (param $end i32)
    (loop $next
      (i32.store (i32.const 0) (local.get $at))
      (i32.store (i32.const 4) (i32.sub (local.get $end) (local.get $at)))
      (if (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then (unreachable)))
      (local.set $at (i32.add (local.get $at) (i32.load (i32.const 8))))
      (br_if $next (i32.lt_u (local.get $at) (local.get $end)))))

  ;; Says why on standard error and ends with status 1.
  (func $fail (param $text i32) (param $length i32)
    (call $write_all (i32.const 2) (local.get $text) (i32.add (local.get $text) (local.get $length)))
    (call $proc_exit (i32.const 1))
    (unreachable)))
