"""The text of `lstsd train --help`: the most used flags, on one screen. `--help-all` prints every flag."""

SHORT_HELP = """\
usage: lstsd train [CONFIG] [--flag value ...]

Fine-tunes on a GLUE task, or on your own files. CONFIG is the path of a YAML
file, or the name of a packaged one, such as mrpc. Flags override it.

the model
  --model_name_or_path       name on the Hub, folder, or package://NAME/path
  --num_hidden_layers        keep only the first N layers
  --trainer                  plain: the same run with transformers.Trainer

the data
  --task_name, --data_dir    a GLUE task; a folder to read it from
  --train_file               your CSV, TSV, JSON or parquet file
  --validation_file          likewise; or --validation_fraction of train_file
  --test_file                likewise; with --do_predict
  --text_columns             one or two; default: text, sentence, ...
  --label_column             default: label
  --label_kind               classes or scores; default: guessed from labels
  --max_seq_length           in tokens; default: 128
  --max_train_samples        use the first rows only

the method
  --mini_generation_epochs   K: the long-term teacher teaches from epoch K on
  --long_term_weight, --short_term_weight
                             each teacher's share of the loss; 0 turns it off
  --outside_teacher          a store from lstsd record, as a further teacher
  --teacher_trust            honest (for classes), confidence or constant
  --weight_schedule          constant or linear
  --logits_retention         all or needed: which epochs' predictions to keep

the run
  --output_dir               where everything goes
  --do_train, --do_eval, --do_predict
  --num_train_epochs, --learning_rate, --per_device_train_batch_size, --seed
  --bf16, --use_cpu          bfloat16; no GPU
  --resume_from_checkpoint   true: go on from the last complete checkpoint
  --report                   true: write a page about each training sample
  --push_to_hub, --hub_model_id

These and all flags of transformers.TrainingArguments: lstsd train --help-all
"""
